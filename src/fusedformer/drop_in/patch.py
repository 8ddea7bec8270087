"""`patch` and `unpatch`: a model of PyTorch, Hugging Face or timm through our kernels, in place and back.

A module is patched by its class alone (classes.py), by the first rule that knows its forward (registry.py).
"""

from torch import nn

from fusedformer.drop_in import calls, hugging_face_model
from fusedformer.drop_in.classes import Patched, patched_class
from fusedformer.drop_in.registry import find, is_named_as
from fusedformer.drop_in.report import Left, PatchReport, Replaced
from fusedformer.drop_in.rules import Rule
from fusedformer.drop_in.torch_rules import ATTENTION_EFFECT


def patch(
    model: nn.Module, *, attention: bool = True, norms: bool = True, activations: bool = True, loss: bool = True
) -> PatchReport:
    """Let the modules of `model` compute through our kernels, where we know them; in place, until `unpatch`.

    Nothing but the class of a module changes, to a subclass of its own of the same name: parameters, `state_dict`,
    hooks, modes and whatever refers to the module stay as they are, and the model can be copied, pickled, compiled and
    wrapped. A module whose forward is not one that we know, or that has been changed, is left. Where there is no kernel
    for a call, on a CPU above all, the module computes by its own code; `report` counts either.

        print(fusedformer.patch(model))        # what was replaced, what was left, and why
        with fusedformer.patch(model):         # or for a while
            model(x)
        print(fusedformer.report(model))       # what the calls came to

    Known are LayerNorm, RMSNorm, GELU, Softmax, LogSoftmax, MultiheadAttention, TransformerEncoderLayer and
    TransformerDecoderLayer (in their encoder too, whose fast path asks no module) and CrossEntropyLoss of `torch.nn`,
    with subclasses that keep the forward; norms, activations, gated networks and blocks with residuals of Hugging
    Face's models, their attention and the loss of their language models; attention, norms, activations and blocks of
    timm's vision transformers.

    Args:
        model: any module; patched modules in it are left as they are.
        attention: patch attention.
        norms: patch norms, and the residuals before them where the forward around them is one that we know.
        activations: patch activations and gated networks.
        loss: patch losses.

    Returns:
        A report; `str()` of it is for people. As a context manager it takes back what this call has done.

    Raises:
        ValueError: `model` is no module.
    """
    _check("patch", model)
    switches = {"attention": attention, "norms": norms, "activations": activations, "loss": loss}
    enabled = {name for name, is_on in switches.items() if is_on}
    done: list[nn.Module] = []
    replaced, left, already_patched = [], [], 0
    for path, module in list(model.named_modules()):
        kind = type(module).__name__
        rule_or_reason = None if isinstance(module, Patched) else find(module, enabled)
        already_patched += isinstance(module, Patched)
        if isinstance(rule_or_reason, Rule):
            rule, rule_or_reason = rule_or_reason, _replace(module, rule_or_reason)
            if rule_or_reason is None:
                done.append(module)
                if rule is not hugging_face_model.PLAIN:  # what that stands for is listed as attention
                    replaced.append(Replaced(path, kind, rule.name, rule.effect))
        if isinstance(rule_or_reason, str):
            left.append(Left(path, kind, rule_or_reason))
    if attention:
        replaced, left = _take_attention(model, replaced, left)
    device = next((parameter.device.type for parameter in model.parameters()), "")
    return PatchReport(tuple(replaced), tuple(left), device, already_patched, lambda: _restore(done))


def unpatch(model: nn.Module) -> None:
    """Take back whatever `patch` did to the modules of `model`.

    Raises:
        ValueError: `model` is no module, or the class of a patched module was changed since, as `fully_shard` does;
            nothing is taken back then.
    """
    _check("unpatch", model)
    _restore([module for module in model.modules() if isinstance(module, Patched)])


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{function}: model is {type(model).__name__}, expected a torch.nn.Module")


def _replace(module: nn.Module, rule: Rule) -> str | None:
    """Why the module cannot be given another class; None if it was."""
    try:
        module.__class__ = patched_class(type(module), rule)
    except TypeError as error:
        return f"its class cannot be changed: {error}"
    calls.forget([module])
    return None


def _take_attention(model: nn.Module, replaced: list[Replaced], left: list[Left]) -> tuple[list[Replaced], list[Left]]:
    """Hugging Face models by their config; their attention modules, which ask it, are not left then."""
    modules = dict(model.named_modules())
    for path, reason in hugging_face_model.take_attention(model):
        kind = type(modules[path]).__name__
        if reason is not None:
            left = [*left, Left(path, kind, f"attention: {reason}")]
            continue
        replaced = [*replaced, Replaced(path, kind, "attention", ATTENTION_EFFECT)]
        below = f"{path}." if path else ""
        left = [each for each in left if not (each.path.startswith(below) and _asks_a_config(modules[each.path]))]
    return replaced, left


def _asks_a_config(module: nn.Module) -> bool:
    return is_named_as(type(module), "attention") and type(module).__module__.startswith("transformers.")


def _restore(modules: list[nn.Module]) -> None:
    changed = [type(module).__name__ for module in modules if "fused_rule" not in vars(type(module))]
    if changed:
        names = ", ".join(sorted(set(changed)))
        raise ValueError(f"unpatch: {names} were derived from patched classes since: undo that first")
    for module in modules:
        if isinstance(module, Patched):
            if hugging_face_model.is_model(module):
                hugging_face_model.give_attention_back(module)
            module.__class__ = module.fused_original  # type: ignore[assignment]
