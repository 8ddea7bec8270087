"""What vision transformers of different families have alike: fields of their configuration, and names that changed."""

IMAGE_SIZES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "n_channels": "num_channels",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
}
# Up to version 4 of transformers, attention was named as BERT's.
ATTENTION_SPELLINGS = (
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
)
