"""Complete transformers on the package's own kernels: one thin file per architecture over shared parts.

`config` names every size, `parts` holds what the architectures share, and `encoder`, `decoder`, `encoder_decoder`
and `vision_transformer` are one architecture each. `generation` decodes token by token, with `sampling` or by
`beam_search`, and keeps in a `cache` what it has computed. `markov` is the floor of every language model, `word_vectors`
asks a table about its words. `checkpoint` saves and loads our own weights, and `pretrained` reads other people's.
"""
