"""One module per export mode, named as in `dolg_tf.serving.config.MODES`; each ends in its MODE."""
