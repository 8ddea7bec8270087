"""Other people's files of weights: one reader per format, all with one result.

Each `read` returns the fields of a Hugging Face `config.json` and the tensors, on the CPU, under the names of the
checkpoints that Hugging Face publishes; `transformer/huggingface` builds our models from these. `locate` finds files.

Nothing in these files is executed: pickles are read as weights only, packages are found and not imported. A file that
is truncated, corrupt or of another format is a ValueError that names it.
"""
