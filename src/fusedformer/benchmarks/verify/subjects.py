"""The models of `verify`: what each is asked to do, four with real input, and the figures it is known by.

A subject is loaded when it is made. Ours and the public implementations do its tasks with the same weights and input.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedformer.benchmarks.harness.op import FORWARD
from fusedformer.benchmarks.models import TRAINING_STEP
from fusedformer.benchmarks.verify import char_gpt, inputs, public
from fusedformer.benchmarks.verify.inputs import DINOV2, MINILM, OPENING, QUESTION, SENTENCES, SMOLLM2, WHISPER
from fusedformer.benchmarks.verify.sentences import MIXED
from fusedformer.transformer.audio import RATE, log_mel_spectrogram
from fusedformer.transformer.decoder import Decoder
from fusedformer.transformer.encoder import Encoder
from fusedformer.transformer.encoder_decoder import EncoderDecoder
from fusedformer.transformer.formats.locate import find_weights
from fusedformer.transformer.images import preprocess
from fusedformer.transformer.model import Model
from fusedformer.transformer.pretrained import read_weights
from fusedformer.transformer.vision_transformer import VisionTransformer

COSINES, LOSS = (0.6946, 0.9429, 0.2569), 1.5427  # by the original implementations
WRITING = "writing"  # token by token, with a cache
WRITTEN = 24  # tokens, behind as many of the prompt
HUGGING_FACE, TIMM, PLAIN = "Hugging Face", "timm", "plain PyTorch"
Compute = Callable[[], Tensor]


@dataclass(frozen=True)
class Figure:
    """What a model is known by: the value found, the one expected, and whether they agree."""

    name: str
    found: str
    expected: str
    is_right: bool


@dataclass(frozen=True)
class Task:
    """One thing to compute, a tensor: numbers that agree within a tolerance, or tokens that are the same."""

    ours: Compute
    theirs: Mapping[str, Callable[[], Compute]]  # by implementation; raises MissingError where it is not installed
    amount: float  # of the unit, which rates are told in, that is computed at once
    unit: str


@dataclass(frozen=True)
class Subject:
    """A loaded model and its tasks, FORWARD first if there is one. `details` has what pictures are made of."""

    model: Model
    tasks: Mapping[str, Task]
    figures: Callable[[], list[Figure]]
    details: dict[str, Any] = field(default_factory=dict)


def load_minilm(device: torch.device, dtype: torch.dtype) -> Subject:
    """Embeddings of sentences of mixed lengths, packed; Hugging Face's of a padded batch."""
    inputs.require(MINILM, "safetensors", "tokenizers")
    from fusedformer.transformer.tokenizer import load_tokenizer

    model = Encoder.from_pretrained(MINILM, device=device, dtype=dtype)
    tokenizer = load_tokenizer(MINILM)

    def tokenize(sentences: Sequence[str]) -> list[Tensor]:
        return [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(list(sentences))]

    def embed(rows: list[Tensor]) -> Compute:
        tokens, cu_seqlens = (tensor.to(device) for tensor in Encoder.pack(rows))
        return lambda: model.embed(tokens, cu_seqlens=cu_seqlens)

    rows = tokenize(MIXED)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(device)

    def theirs() -> Compute:
        bert = public.load_hugging_face("Bert", "BertModel", MINILM, device, dtype)

        def run() -> Tensor:
            hidden = bert(input_ids=padded, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
            return F.normalize(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=-1)

        return run

    def figures() -> list[Figure]:
        embeddings = embed(tokenize(SENTENCES))().float().cpu()
        found = [float(embeddings[0] @ other) for other in embeddings[1:]]
        allowed = 1e-4 if dtype == torch.float32 else 1e-2
        is_right = all(abs(cosine - expected) <= allowed for cosine, expected in zip(found, COSINES, strict=True))
        return [Figure(f"cosines to {SENTENCES[0]!r}", decimals(found), decimals(COSINES), is_right)]

    task = Task(embed(rows), {HUGGING_FACE: theirs}, len(rows), "sentences")
    return Subject(model, {FORWARD: task}, figures, {"tokenizer": tokenizer})


def load_smollm2(device: torch.device, dtype: torch.dtype) -> Subject:
    """The logits of the opening of a novel, and how its first tokens go on; the loss, and the answer to a question."""
    inputs.require(SMOLLM2, "gguf", "tokenizers")
    from fusedformer.transformer.tokenizer import load_chat_template, load_tokenizer

    model = Decoder.from_pretrained(SMOLLM2, device=device, dtype=dtype)
    tokenizer = load_tokenizer(SMOLLM2)
    tokens = torch.tensor([tokenizer.encode(OPENING).ids], device=device)
    prompt = tokens[:, :WRITTEN]

    @functools.cache
    def llama() -> Any:
        return public.load_hugging_face("Llama", "LlamaForCausalLM", SMOLLM2, device, dtype)

    def forward() -> Compute:
        theirs = llama()
        return lambda: theirs(tokens).logits

    def writing() -> Compute:
        return public.writing(llama(), {"input_ids": prompt}, max_new_tokens=WRITTEN)

    tasks = {
        FORWARD: Task(lambda: model(tokens), {HUGGING_FACE: forward}, tokens.shape[1], "tokens"),
        WRITING: Task(
            lambda: model.generate(prompt, WRITTEN, temperature=0), {HUGGING_FACE: writing}, WRITTEN, "tokens"
        ),
    }

    def figures() -> list[Figure]:
        loss, allowed = model.loss(tokens).item(), 0.002 if dtype == torch.float32 else 0.02
        template = load_chat_template(SMOLLM2)
        prompt = tokenizer.encode(template([{"role": "user", "content": QUESTION}])).ids
        end = tokenizer.token_to_id("<|im_end|>")
        written = model.generate(torch.tensor([prompt], device=device), 12, temperature=0, eos_token_id=end)
        answer = tokenizer.decode(written[0, len(prompt) :].tolist())
        return [
            Figure("loss on the opening, nats", f"{loss:.4f}", f"{LOSS} +- {allowed}", abs(loss - LOSS) <= allowed),
            written_figure(QUESTION, answer, "Paris", "Paris" in answer, dtype),
        ]

    return Subject(model, tasks, figures)


def load_whisper(device: torch.device, dtype: torch.dtype) -> Subject:
    """The transcript of the opening read aloud, and the logits of it by teacher forcing."""
    inputs.require(WHISPER, inputs.WHISPER_REST, inputs.RECORDING, "tokenizers")
    from fusedformer.transformer.tokenizer import load_tokenizer
    from fusedformer.transformer.transcription import END, prompt_tokens, special_token, transcribe_tokens

    config, _ = read_weights(WHISPER)
    model = EncoderDecoder.from_pretrained(WHISPER, device=device, dtype=dtype)
    tokenizer, samples = load_tokenizer(WHISPER), inputs.load_recording().to(device)
    prompt, end = prompt_tokens(tokenizer, "en"), special_token(tokenizer, END)
    suppressed = {name: config[name] for name in ("suppress_tokens", "begin_suppress_tokens")}

    def transcribe() -> Tensor:
        # With the token that ends it, for which a step is taken, too.
        written = [*transcribe_tokens(model, prompt, end, samples, **suppressed), end]
        return torch.tensor([written], dtype=torch.long, device=device)

    def mels() -> Tensor:
        return log_mel_spectrogram(samples, model.config.n_mels).unsqueeze(0).to(dtype)

    written, heard = transcribe_tokens(model, prompt, end, samples, **suppressed), mels()
    target = torch.tensor([[*prompt, *written]], device=device)

    @functools.cache
    def whisper() -> Any:
        return public.load_hugging_face("Whisper", "WhisperForConditionalGeneration", WHISPER, device, dtype)

    def forward() -> Compute:
        theirs = whisper()
        return lambda: theirs(input_features=heard, decoder_input_ids=target).logits

    def writing() -> Compute:
        return public.transcribing(whisper(), mels, target[:, : len(prompt)], len(written) + 1, suppressed)

    def figures() -> list[Figure]:
        found, expected = inputs.words(tokenizer.decode(written)), inputs.words(OPENING)
        agreeing = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(found, expected))))
        whole = len(expected)
        name, found_words = "words of the opening heard", f"{agreeing} of {whole}"
        return [written_figure(name, found_words, str(whole), agreeing == whole, dtype)]

    seconds, unit = len(samples) / RATE, "s of sound"
    tasks = {
        FORWARD: Task(lambda: model.decode(target, model.encode(heard)), {HUGGING_FACE: forward}, seconds, unit),
        WRITING: Task(transcribe, {HUGGING_FACE: writing}, seconds, unit),
    }
    details = {
        "tokens": [tokenizer.decode([token]) for token in written],
        "n_prompt": len(prompt),
        "alignment_heads": config["alignment_heads"],
        "seconds": seconds,
    }
    return Subject(model, tasks, figures, details)


def load_dinov2(device: torch.device, dtype: torch.dtype) -> Subject:
    """The hidden states of photos; the figure is their distance to the graph's own, run by onnxruntime."""
    inputs.require(DINOV2, "onnx", "sklearn", "skimage")
    model = VisionTransformer.from_pretrained(DINOV2, device=device, dtype=dtype)
    photos = inputs.load_photos()
    images = torch.cat([preprocess(photo) for photo in photos.values()]).to(device, dtype)

    def hugging_face() -> Compute:
        dinov2 = public.load_hugging_face("Dinov2", "Dinov2Model", DINOV2, device, dtype)
        return lambda: dinov2(images).last_hidden_state

    def timm() -> Compute:
        dinov2 = public.load_timm(DINOV2, model, images)
        return lambda: dinov2.forward_features(images)

    def figures() -> list[Figure]:
        name = "hidden states, distance to onnxruntime"
        if not inputs.is_installed("onnxruntime"):
            return [Figure(name, "-", "pip install onnxruntime", True)]
        hidden, allowed = model.hidden(images), 1e-4 if dtype == torch.float32 else 1.0
        distance = largest_difference(hidden.cpu(), run_graph(images.float().cpu()))
        return [Figure(name, f"{distance:.1e}", f"at most {allowed:.0e}", distance <= allowed)]

    task = Task(lambda: model.hidden(images), {HUGGING_FACE: hugging_face, TIMM: timm}, len(images), "images")
    return Subject(model, {FORWARD: task}, figures, {"photos": photos})


def run_graph(images: Tensor) -> Tensor:
    """The backbone's output (B, S, E) of the ONNX graph itself, by onnxruntime."""
    import onnx
    import onnxruntime

    graph = onnx.load(find_weights(DINOV2))
    (hidden,) = [node.output[0] for node in graph.graph.node if node.name == "/backbone/layernorm/Add_1"]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.cat(
        [torch.from_numpy(session.run([hidden], {"input_image": image[None].numpy()})[0]) for image in images]
    )


def load_char_gpt(device: torch.device, dtype: torch.dtype) -> Subject:
    """A training step from random weights; the figure is how far gradients are from the plain model's."""
    ours, plain = char_gpt.make_trainings(device, dtype)

    def figures() -> list[Figure]:
        largest, distance = char_gpt.compare_gradients(ours, plain)
        allowed = 1e-4 if dtype == torch.float32 else 5e-2
        name = "gradients, distance to plain PyTorch's"
        return [Figure(name, f"{distance:.1e}", f"at most {allowed:g} of {largest:.2g}", distance <= allowed * largest)]

    return Subject(ours.model, {TRAINING_STEP: Task(ours.step, {PLAIN: lambda: plain.step}, 1, "steps")}, figures)


def written_figure(name: str, found: str, expected: str, is_right: bool, dtype: torch.dtype) -> Figure:
    """Of what a model writes: expected in float32 alone.

    SmolLM2's first two candidates for an answer are 0.08 apart there, and numbers of their size 0.125 in bfloat16.
    """
    is_exact = dtype == torch.float32
    return Figure(name, found, expected if is_exact else f"{expected} in float32", is_right or not is_exact)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Of numbers; of tokens, how many are not the same, and all of the longer if there are not as many."""
    if not ours.is_floating_point():
        is_alike = ours.shape == theirs.shape
        return float((ours != theirs).sum() if is_alike else max(ours.numel(), theirs.numel()))
    return (ours.double() - theirs.double()).abs().max().item()


def decimals(values: Any) -> str:
    return " ".join(f"{value:.4f}" for value in values)


SUBJECTS: dict[str, Callable[[torch.device, torch.dtype], Subject]] = {
    "minilm": load_minilm,
    "smollm2": load_smollm2,
    "whisper": load_whisper,
    "dinov2": load_dinov2,
    "char-gpt": load_char_gpt,
}
