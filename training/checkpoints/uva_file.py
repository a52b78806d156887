"""Reading of UVA as it is published: a file of `torch.save` with the config of its training, weights and their average.

Only what policy mode reads is taken: the transformers, the head of actions, the autoencoder and the normalizer of
actions. The config names the size of the model and its inputs; sizes that the tensors tell too must agree.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from runtime.checks import truncate
from runtime.errors import CheckpointError, ConfigError
from runtime.model.uva_config import FRAMES, UvaConfig
from training.checkpoints.checkpoint import Checkpoint, hash_files
from training.checkpoints.infer_config import PartialConfig, merge_configs
from training.checkpoints.latent_scale import LatentScale
from training.checkpoints.pickles import StandIn, read_pickle
from training.checkpoints.published_files import read_arguments
from training.checkpoints.tensor_files import assign_weights, check_tensors
from training.checkpoints.zip_archives import is_archive, read_member
from training.models.autoencoder import AutoencoderKL, VAEConfig
from training.models.uva import SIZES, Uva

_MARK = b"diffactloss"  # the head of actions, in the names of the tensors
_MOST_NAMES = 64 * 2**20  # bytes
_MODEL, _VAE, _ACTION = "model.", "vae_model.", "normalizer.params_dict.action."
# What the published code can be trained with, and no published checkpoint has; by the place in its config.
_UNSUPPORTED = ("use_history_action", "predict_wrist_img")
_LAYOUT = {"img_size": 256, "vae_stride": 16, "patch_size": 1, "vae_embed_dim": 16}


def is_published(path: pathlib.Path) -> bool:
    """Return whether a file is a checkpoint of UVA, by the names of its tensors."""
    return path.is_file() and is_archive(path) and _MARK in read_member(path, "data.pkl", _MOST_NAMES)


def load_published(
    path: pathlib.Path,
    config_file: pathlib.Path | None = None,
    *,
    latent_scale: float | None = None,
    latent_shift: float | None = None,
    autoencoder: bool = True,
) -> Checkpoint:
    """Load a UVA in policy mode with its averaged weights.

    Args:
        path: The file.
        config_file: A JSON file with fields of `runtime.model.uva_config.UvaConfig`, such as the numbers of heads
            where the config names no published size.
        latent_scale: The factor that gives the latents of the autoencoder unit variance, if it is another.
        latent_shift: What is subtracted from these latents before.
        autoencoder: Whether the autoencoder of the file is loaded.

    Raises:
        CheckpointError: The file is damaged or holds something else, or a model that is not supported.
        ConfigError: Two sources of the config contradict each other, or nothing tells the number of heads.
    """
    content = read_pickle(path)
    where, config = str(path), _plain(content.get("cfg") if isinstance(content, Mapping) else None)
    weights = _averaged(content, where)
    configs = [_of_tensors(weights, where), _of_config(config, where)]
    if config_file is not None:
        configs.append(PartialConfig(f"--model-config {config_file}", read_arguments(config_file)))
    values = merge_configs(configs, where)
    if missing := [half for half in ("encoder", "decoder") if f"{half}_num_heads" not in values]:
        raise ConfigError(
            f"{where}: the tensors do not determine the number of attention heads, and its config names no published "
            f"size; give it with --model-config FILE.json, {' and '.join(f'{half}_num_heads' for half in missing)}"
        )
    uva = UvaConfig.from_dict({**values, **_normalization(weights, config, values["action_dim"], where)}, where)
    with torch.device("meta"):
        model = Uva(**uva.to_dict())
    assign_weights(model, _of_policy(weights, model), where)
    warnings: list[str] = []
    vae = _autoencoder(weights, latent_scale, latent_shift, path, warnings) if autoencoder else None
    if vae is None and (latent_scale is not None or latent_shift is not None):
        raise ConfigError(f"--latent-scale and --latent-shift are for an autoencoder; {path} has none that is complete")
    kind = "none" if vae is None else "kl"
    return Checkpoint(model, kind, (), path.name, hash_files([path]), vae, tuple(warnings))


def _plain(value: Any) -> Any:
    """Return a value of omegaconf, which was read as stand-ins, as plain dictionaries, lists and values."""
    if isinstance(value, StandIn):
        state = vars(value)
        return _plain(state["_content"]) if "_content" in state else state.get("_val")
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _averaged(content: Any, where: str) -> dict[str, Tensor]:
    """Return the averaged weights by name, without `module.`."""
    states = content.get("state_dicts") if isinstance(content, Mapping) else None
    averaged = states.get("ema_model") if isinstance(states, Mapping) else None
    if not isinstance(averaged, Mapping):
        raise CheckpointError(f"{where}: expected the averaged weights of a UVA under state_dicts.ema_model")
    named = {str(name).replace("module.", ""): tensor for name, tensor in averaged.items()}
    if strangers := [name for name, tensor in named.items() if not isinstance(tensor, Tensor)]:
        raise CheckpointError(f"{where}: {truncate(strangers[0])} of the averaged weights is no tensor")
    return check_tensors({name: tensor for name, tensor in named.items() if tensor.numel()}, where)


def _of_tensors(weights: Mapping[str, Tensor], where: str) -> PartialConfig:
    """Return the fields that follow from the names and shapes of the tensors."""

    def size(name: str, axis: int) -> int:
        shape = tuple(weights[_MODEL + name].shape) if _MODEL + name in weights else ()
        if len(shape) <= axis:
            state = f"of shape {shape}" if _MODEL + name in weights else "missing"
            raise CheckpointError(f"{where}: not the parameters of a UVA, {_MODEL}{name} is {state}")
        return int(shape[axis])

    def count(blocks: str) -> int:
        pattern = re.compile(rf"{re.escape(_MODEL + blocks)}\.(\d+)\.")
        return len({match[1] for name in weights if (match := pattern.match(name))})

    text, state = "text_proj_cond.weight", "proprioception_proj_cond.weight"
    values = {
        "encoder_embed_dim": size("z_proj_cond.weight", 0),
        "encoder_depth": count("encoder_blocks"),
        "decoder_embed_dim": size("decoder_embed.weight", 0),
        "decoder_depth": count("decoder_blocks"),
        "diffloss_act_d": count("diffactloss.net.res_blocks"),
        "diffloss_act_w": size("diffactloss.net.input_proj.weight", 0),
        "action_dim": size("diffactloss.net.input_proj.weight", 1),
        "text_dim": size(text, 1) if _MODEL + text in weights else 0,
        "state_dim": size(state, 1) if _MODEL + state in weights else 0,
    }
    return PartialConfig("its tensors", values)


def _of_config(config: Any, where: str) -> PartialConfig:
    """Return the fields in the config of the training, after checking that policy mode is supported for it."""
    where = f"{where}: cfg"
    task, policy = _table(config, "task", where), _table(_table(config, "model", where), "policy", where)
    model = _table(policy, "autoregressive_model_params", where)
    _check_supported(task, policy, model, where)
    values: dict[str, Any] = {"state_steps": FRAMES} if policy.get("use_proprioception") else {"state_dim": 0}
    if not _table(task, "dataset", where).get("language_emb_model"):
        values["text_dim"] = 0
    stated = {name: model.get(name) for name in ("diffloss_act_d", "diffloss_act_w", "temperature")}
    stated |= {"action_dim": _action_shape(task), "n_action_steps": policy.get("n_action_steps")}
    steps = model.get("act_diff_testing_steps")
    stated["act_diff_testing_steps"] = None if steps is None else str(steps)
    values |= {name: value for name, value in stated.items() if value is not None}
    if (size := SIZES.get(str(model.get("model_size")))) is not None:
        for half in ("encoder", "decoder"):
            values |= {f"{half}_{name}": value for name, value in size.items()}
    return PartialConfig("the config of its training", values)


def _check_supported(task: Mapping[str, Any], policy: Mapping[str, Any], model: Mapping[str, Any], where: str) -> None:
    """Check the parts of a config that decide what policy mode computes. Raises `CheckpointError`."""
    kind = _table(policy, "action_model_params", where).get("act_model_type")
    if kind != "conv_fc":
        raise CheckpointError(f"{where}: act_model_type must be conv_fc, found {truncate(kind)}")
    for name in _UNSUPPORTED:
        if policy.get(name):
            raise CheckpointError(f"{where}: {name} is not supported, and no published checkpoint has it")
    for name, published in _LAYOUT.items():
        if model.get(name, published) != published:
            raise CheckpointError(f"{where}: {name} must be {published}, found {truncate(model[name])}")
    has_state = bool(policy.get("use_proprioception"))
    if has_state and (not str(task.get("name")).startswith("umi") or not policy.get("different_history_freq")):
        raise CheckpointError(
            f"{where}: use_proprioception is supported for tasks umi with different_history_freq, found the task "
            f"{truncate(task.get('name'))}"
        )


def _table(values: Any, name: str, where: str) -> Mapping[str, Any]:
    table = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{where}: not the config of a UVA, {name} is no table of it")
    return table


def _action_shape(task: Mapping[str, Any]) -> Any:
    """Return the values of an action by the config of the task; None if it does not say."""
    meta = task.get("shape_meta")
    action = meta.get("action") if isinstance(meta, Mapping) else None
    shape = action.get("shape") if isinstance(action, Mapping) else None
    return shape[0] if isinstance(shape, list) and len(shape) == 1 else None


def _normalization(weights: Mapping[str, Tensor], config: Any, action_dim: int, where: str) -> dict[str, Any]:
    """Return the normalization of actions; none where the config says so, although there is a normalizer then too."""
    kind = _table(_table(config, "task", where), "dataset", where).get("normalizer_type")
    if kind == "none":
        return {}
    if kind != "all":
        raise CheckpointError(f"{where}: cfg: normalizer_type must be all or none, found {truncate(kind)}")
    found = {}
    for name in ("scale", "offset"):
        tensor = weights.get(f"{_ACTION}{name}")
        if tensor is None or tensor.numel() not in (1, action_dim) or not tensor.isfinite().all():
            state = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}, or not finite"
            raise CheckpointError(f"{where}: {_ACTION}{name} is {state}, which normalizer_type all needs")
        found[f"action_{name}"] = tuple(tensor.float().flatten().expand(action_dim).tolist())
    return found


def _of_policy(weights: Mapping[str, Tensor], model: Uva) -> dict[str, Tensor]:
    """Return the weights that policy mode reads; video, wrist and state heads are left out."""
    needed = model.state_dict().keys()
    named = {name.removeprefix(_MODEL): tensor for name, tensor in weights.items() if name.startswith(_MODEL)}
    return {name: tensor for name, tensor in named.items() if name in needed}


def _autoencoder(
    weights: Mapping[str, Tensor], scale: float | None, shift: float | None, path: pathlib.Path, warnings: list[str]
) -> AutoencoderKL | None:
    """Return the KL-16 in the file; None, with a warning, if it is not complete."""
    found = {name.removeprefix(_VAE): tensor for name, tensor in weights.items() if name.startswith(_VAE)}
    with torch.device("meta"):
        vae = AutoencoderKL(VAEConfig())
    needed = vae.state_dict().keys()
    if missing := needed - found.keys():
        warnings.append(
            f"{path}: its autoencoder lacks {len(missing)} of {len(needed)} tensors and is left out, so the policy "
            "takes latents and no frames"
        )
        return None
    named = LatentScale().replaced(scale, shift)
    (vae.latent_scale, vae.latent_shift), vae.scale_source = named.values(path), named.source
    assign_weights(vae, {name: found[name] for name in needed}, str(path))
    return vae
