"""Complete transformers on the package's own kernels: one thin file per architecture over shared parts.

config, presets          every size and choice; published models as data
embeddings, positions    how tokens and sound become vectors, and how a model knows where they stand
attention, blocks        self and cross-attention; sublayers on the residual stream, and the stack of blocks
recording                patterns of attention of a model at work
outputs                  pooling, losses
encoder, decoder, encoder_decoder, vision_transformer
                         one architecture each, over `model`, what they all have in common
generation               decoding token by token: with `sampling` or by `beam_search`, over what a `cache` keeps
markov                   models that count: the floor of every language model
word_vectors             nearest words and arithmetic of meanings on an embedding table
ledger                   parameters and FLOPs of a model, counted by what they do
checkpoint               our own weights on disk
pretrained               other people's: `formats/` reads their files, `huggingface/` gives their tensors our names
tokenizer, audio, images, transcription
                         from text, sound and pictures to what a model reads, and from what Whisper writes to text
"""
