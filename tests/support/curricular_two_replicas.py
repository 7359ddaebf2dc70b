"""On each of two replicas, CurricularFace's moving average is that of the whole batch.

test_heads.py runs it in a separate process.
"""

import numpy as np
import tensorflow as tf

from dolg_tf.modeling.heads import CurricularFace


def moved(devices, features, labels, weights):
    """Returns t on each device, and the logits, after two steps."""
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        head = CurricularFace(4)
        head.build((None, 3))
        head.kernel.assign(np.eye(4, 3) + 0.1)

    @tf.function
    def step(*batch):
        def replica_step(features, labels, weights):
            return head.logits(head(features), labels, weights, training=True)

        return strategy.run(replica_step, args=batch)

    def share(array):
        per = len(array) // len(devices)

        def value(context):
            first = context.replica_id_in_sync_group * per
            return tf.constant(array[first : first + per])

        return strategy.experimental_distribute_values_from_function(value)

    for _ in range(2):
        logits = step(share(features), share(labels), share(weights))
    copies = [float(copy) for copy in strategy.experimental_local_results(head.t.value)]
    return copies, np.concatenate(strategy.experimental_local_results(logits))


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    features = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1], np.int32)
    # The replicas count 3 and 1 photos, so a mean of their means would differ.
    weights = np.array([1, 1, 1, 0, 0, 1], np.float32)
    one, expected = moved(["CPU:0"], features, labels, weights)
    two, logits = moved(["CPU:0", "CPU:1"], features, labels, weights)
    assert len(two) == 2 and two[0] == two[1] != 0, two
    np.testing.assert_allclose(two, one * 2, rtol=1e-5)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    main()
