"""Attention against a cache of keys, for inference: the files of the folder above, for `flash_attn_with_kvcache`."""
