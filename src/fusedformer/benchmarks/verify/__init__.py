"""`fusedformer verify`: real models on real input, with kernels on and off, beside the public implementation.

inputs.py       where weights, texts, sounds and photos come from, and how to install what is missing
subjects.py     the four models: what each computes, its figure, and Hugging Face's of the same weights
pictures.py     attention over a sentence, of a transcript to its sound, and on a photo
run.py          differences, times, table, folder
"""
