"""`fusedformer verify`: real models on real input, with kernels on and off, beside the public implementation.

inputs.py       where weights, texts, sounds and photos come from, and how to install what is missing
sentences.py    text of mixed lengths
subjects.py     the models: what each computes, its figure, and public ones of the same weights
public.py       Hugging Face's and timm's models of these weights
char_gpt.py     a training step, ours and in plain PyTorch
pictures.py     attention over a sentence, of a transcript to its sound, and on a photo
run.py          differences, times, table, folder
"""
