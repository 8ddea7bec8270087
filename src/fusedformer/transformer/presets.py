"""Published models as fields of `TransformerConfig`: data, each number from the source named beside it."""

from typing import Any

_GPT2: dict[str, Any] = {
    "vocab_size": 50257, "max_seq_len": 1024, "activation": "gelu_tanh", "norm_position": "pre", "norm_eps": 1e-5,
    "dropout": 0.1,
}  # fmt: skip
_BERT: dict[str, Any] = {
    "vocab_size": 30522, "max_seq_len": 512, "type_vocab_size": 2, "activation": "gelu", "norm_position": "post",
    "norm_eps": 1e-12, "dropout": 0.1,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "positions": "rotary", "norm": "rms", "norm_position": "pre", "norm_eps": 1e-5, "activation": "swiglu",
    "bias": False, "dropout": 0.0,
}  # fmt: skip

# fmt: off
PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 and table 2 (vocabulary,
    # context, layers, width); heads, norm_eps and the tanh form of GELU from the hparams.json and code they released.
    "gpt2": {**_GPT2, "d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 3072},
    "gpt2-medium": {**_GPT2, "d_model": 1024, "n_layers": 24, "n_heads": 16, "d_ff": 4096},
    "gpt2-large": {**_GPT2, "d_model": 1280, "n_layers": 36, "n_heads": 20, "d_ff": 5120},
    "gpt2-xl": {**_GPT2, "d_model": 1600, "n_layers": 48, "n_heads": 25, "d_ff": 6400},
    # Brown et al. 2020, "Language Models are Few-Shot Learners" (arXiv:2005.14165), table 2.1 and section 2.1 (context
    # of 2048, d_ff = 4 d_model, GPT-2's architecture and vocabulary). Attention is dense in every layer here, where
    # theirs alternates with locally banded sparse ones. On a device of 'meta' it costs no memory.
    "gpt3-175b": {
        **_GPT2, "max_seq_len": 2048, "d_model": 12288, "n_layers": 96, "n_heads": 96, "d_ff": 49152, "dropout": 0.0,
    },
    # Touvron et al. 2023, "LLaMA" (arXiv:2302.13971), section 2.2 for the architecture; Grattafiori et al. 2024, "The
    # Llama 3 Herd of Models" (arXiv:2407.21783), for vocabulary and base; sizes and scaling from the config.json
    # published with meta-llama/Llama-3.2-1B.
    "llama-3.2-1b": {
        **_LLAMA, "vocab_size": 128256, "max_seq_len": 131072, "d_model": 2048, "n_layers": 16, "n_heads": 32,
        "n_kv_heads": 8, "d_ff": 8192, "rotary_base": 500000.0, "rotary_scaling": "llama3", "rotary_factor": 32.0,
        "rotary_low_freq_factor": 1.0, "rotary_high_freq_factor": 4.0, "rotary_original_len": 8192,
    },
    # Grattafiori et al. 2024, table 3 (layers, width, d_ff, heads, base); vocabulary, context of the first release and
    # norm_eps from the config.json published with meta-llama/Meta-Llama-3-8B.
    "llama-3-8b": {
        **_LLAMA, "vocab_size": 128256, "max_seq_len": 8192, "d_model": 4096, "n_layers": 32, "n_heads": 32,
        "n_kv_heads": 8, "d_ff": 14336, "rotary_base": 500000.0, "tie_embeddings": False,
    },
    # The config.json published with HuggingFaceTB/SmolLM2-135M-Instruct; Ben Allal et al. 2025, "SmolLM2"
    # (arXiv:2502.02737).
    "smollm2-135m": {
        **_LLAMA, "vocab_size": 49152, "max_seq_len": 8192, "d_model": 576, "n_layers": 30, "n_heads": 9,
        "n_kv_heads": 3, "d_ff": 1536, "rotary_base": 100000.0,
    },
    # Devlin et al. 2019, "BERT" (arXiv:1810.04805), section 3 (layers, width, heads) and appendix A.2 (dropout, GELU);
    # vocabulary, positions and norm_eps from the bert_config.json and code they released.
    "bert-base": {**_BERT, "d_model": 768, "n_layers": 12, "n_heads": 12, "d_ff": 3072},
    # The config.json published with sentence-transformers/all-MiniLM-L6-v2: every second layer of the 12-layer student
    # of Wang et al. 2020, "MiniLM" (arXiv:2002.10957), in BERT's architecture.
    "minilm-l6": {**_BERT, "d_model": 384, "n_layers": 6, "n_heads": 12, "d_ff": 1536, "pooling": "mean"},
    # Raffel et al. 2020, "Exploring the Limits of Transfer Learning" (arXiv:1910.10683), section 2.1 and the sizes of
    # "Small" in section 3.7; vocabulary with padding, norm_eps, buckets and distance from the t5-small they released.
    "t5-small": {
        "vocab_size": 32128, "max_seq_len": 512, "d_model": 512, "n_layers": 6, "n_heads": 8, "d_ff": 2048,
        "positions": "relative", "relative_buckets": 32, "relative_max_distance": 128, "norm": "rms",
        "norm_position": "pre", "norm_eps": 1e-6, "activation": "relu", "bias": False, "dropout": 0.1,
        "scale_attention": False, "scale_tied_head": True,
    },
    # Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv:2212.04356), table 1
    # (layers, width, heads) and section 2.2 (80 mel channels, 30 s); vocabulary, context and start token from the
    # multilingual model they released.
    "whisper-base": {
        "vocab_size": 51865, "max_seq_len": 448, "n_mels": 80, "max_source_len": 1500, "d_model": 512, "n_layers": 6,
        "n_heads": 8, "d_ff": 2048, "activation": "gelu", "norm_position": "pre", "norm_eps": 1e-5,
        "decoder_start_token_id": 50258,
    },
    # Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv:2010.11929), table 1, at 224 pixels with the
    # 1,000 ImageNet classes; dropout from its table 3, norm_eps from the code they released.
    "vit-b/16": {
        "image_size": 224, "patch_size": 16, "n_channels": 3, "n_classes": 1000, "d_model": 768, "n_layers": 12,
        "n_heads": 12, "d_ff": 3072, "activation": "gelu", "norm_position": "pre", "norm_eps": 1e-6, "dropout": 0.1,
    },
    "vit-l/16": {
        "image_size": 224, "patch_size": 16, "n_channels": 3, "n_classes": 1000, "d_model": 1024, "n_layers": 24,
        "n_heads": 16, "d_ff": 4096, "activation": "gelu", "norm_position": "pre", "norm_eps": 1e-6, "dropout": 0.1,
    },
    # Oquab et al. 2023, "DINOv2" (arXiv:2304.07193), table 17 (ViT-S: width, heads, layers, MLP feed-forward) and
    # section 4 (518 pixels at the end of training); norm_eps and layer scale from the code they released. No head.
    "dinov2-s/14": {
        "image_size": 518, "patch_size": 14, "n_channels": 3, "d_model": 384, "n_layers": 12, "n_heads": 6,
        "d_ff": 1536, "activation": "gelu", "norm_position": "pre", "norm_eps": 1e-6, "layer_scale": 1.0,
    },
    # Ours, for examples/train_decoder.py: nanoGPT's published shape for training on a CPU (4 layers, d 128, context 64,
    # no dropout). The vocabulary is the text's own: an override.
    "char-decoder": {
        "vocab_size": 256, "max_seq_len": 64, "d_model": 128, "n_layers": 4, "n_heads": 4, "d_ff": 512,
        "activation": "gelu_tanh",
    },
    # nanoGPT's published shape for training on a GPU (config/train_shakespeare_char.py: 6 layers, d 384, context 256,
    # dropout 0.2; no biases, as its train.py has it), with its GELU, by erf.
    "char-decoder-large": {
        "vocab_size": 65, "max_seq_len": 256, "d_model": 384, "n_layers": 6, "n_heads": 6, "d_ff": 1536,
        "activation": "gelu", "dropout": 0.2, "bias": False,
    },
    # Ours, for examples/train_vit.py: scikit-learn's digits are 8 x 8 pixels of one channel in 10 classes.
    "digits-vit": {
        "image_size": 8, "patch_size": 2, "n_channels": 1, "n_classes": 10, "d_model": 64, "n_layers": 4, "n_heads": 4,
        "d_ff": 256, "dropout": 0.1,
    },
    # Ours, for examples/train_encoder_decoder.py; ReLU and post-norm as in Vaswani et al. 2017, "Attention Is All You
    # Need" (arXiv:1706.03762), section 3.
    "reversal": {
        "vocab_size": 32, "max_seq_len": 32, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 256,
        "activation": "relu", "norm_position": "post",
    },
}
# fmt: on
