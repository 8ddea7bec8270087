"""Models in the Hugging Face layout: the fields of their config.json and the names of their tensors, as ours.

load.py      `from_huggingface`, the one way in
family.py    what a family of models is, and how its tensors become ours
configs.py   reading a config.json
one file per family: gpt2, llama, bert, t5, whisper, vit, dinov2, timm_vit
"""
