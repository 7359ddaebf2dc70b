"""What meta.json of a descriptor set says, for tests that write one."""

META = {
    "image_root": "photos",
    "model_hash": "abc",
    "scales": [1.0],
    "crop": False,
    "max_side": 0,
    "whitening": None,
    "bad": [],
}
