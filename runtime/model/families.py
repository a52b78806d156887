"""The model families: one table with a row for each, which says everything in which families differ.

What lies in a higher layer or in another package is named as text, `package.module:attribute` or `package.module`, and
imported when it is used. So this table names parts of `training` and `mar_export`, and the runtime imports neither.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from runtime.checks import truncate
from runtime.errors import ConfigError, RequestError
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import (
    BACKBONE,
    CONDITION,
    CONDITIONING,
    DECODER,
    DENOISE,
    ENCODER,
    TEXT_ENCODER,
    EngineSpec,
    tokenizer_specs,
)
from runtime.model.family_config import FamilyConfig
from runtime.model.himar_config import FAMILY as HIMAR
from runtime.model.himar_config import HimarConfig
from runtime.model.himar_engines import BACKBONE2, CONDITIONING2, DENOISE2, himar_specs
from runtime.model.mar_engines import causal_specs, mar_specs
from runtime.model.nova_config import FAMILY as NOVA
from runtime.model.nova_config import NovaConfig
from runtime.model.nova_engines import nova_specs, nova_text_specs
from runtime.model.recap_engines import FULL, LOCAL, recap_specs
from runtime.model.uva_config import FAMILY as UVA
from runtime.model.uva_config import UvaConfig
from runtime.model.uva_engines import uva_specs

Grid = tuple[int, int]
"""The rows and columns of a grid of tokens."""

DEFAULT = "mar"
"""The name that the stored config of every MAR stands for, which has no key `family`."""

FAMILY_KEY = "family"
"""The key of the family in a stored config."""


def _no_specs(config: Any) -> tuple[EngineSpec, ...]:
    return ()


def _one_grid(config: FamilyConfig) -> tuple[Grid, ...]:
    return (config.grid_shape,)


@dataclasses.dataclass(frozen=True)
class Family:
    """One row: a family of models.

    Attributes:
        kind: What its models are called in messages, such as `models with causal attention`.
        config: The class of its configs, a `runtime.model.family_config.FamilyConfig`.
        specs: The specs of the engines of the sampling loop, which follow from a config.
        condition: The input of the backbone that says what is drawn. Its first axis has an entry for each image and
            guidance half.
        inputs: The named arguments that a request must have, see `request_inputs`.
        request: Checks what a request holds, a `runtime.requests.subjects.CheckSubjects`.
        example: Makes a request, a `runtime.requests.subjects.ExampleRequest`.
        sampling: How a plan is filled: a module as `runtime.sampling.constraints.SamplingRules` describes it.
        host_loop: The loop on the host, called with engines, config and the arguments of
            `runtime.sampling.plan.PlanLoop`.
        modules: The PyTorch module of each engine, a class that is called with the model, by the engine's name.
        example_sizes: Returns the sizes at which an exported backbone is compared with PyTorch.
        tokenizer: The engines of a KL tokenizer that an artifact can have, and whether it must have them.
        published: How published checkpoints are recognised and read: a module with `is_published` and `load_published`,
            see `training.checkpoints.nova_folder`. None: as a MAR, which all other checkpoints are.
        published_arguments: Which of the arguments `name` and `tokenizer` of `load_published` it has.
        model: The class of its models in PyTorch, which is called with the fields of a config.
        eager: The reference in eager PyTorch: a module with `sample_request`, which makes the latents of a request, and
            counts the seconds of its stages where `mar bench` supports the family; see
            `training.models.reference_loop`.
        trainer: Its runs of `mar train`, a `training.loop.training_loop.TrainingLoop`.
        batches: The micro-batches of its training, a `training.data.loader.StepParts`.
        recorded: The file of examples that takes the place of a dataset of classes, a
            `runtime.recordings.recorded_arrays.RecordedArrays`. None: it has classes.
        from_data: The fields of the config of a new run that its data decide, each with a value that stands for it
            until they are read.
        refused: What does not support the family: the rest of the sentence that says so, by the name of the command.
        optional: The specs of engines that an artifact may have too, beside those of its tokenizer.
        recap: The specs of the engines of ReCAP, which an artifact may have too. `modules` has their modules.
        first_pass_of_class: Whether a pass of the backbone that knows no tokens is a function of the class alone.
        grids: The grids of tokens that are drawn, in order; the last is the image. Orders and noise have the positions
            of all of them, one grid after the other.
        plan: Builds the plan of an image: called with the model, the settings and the number of known tokens.
        prepared_plan: What the loop on a GPU prepares for plans of one shape, a
            `runtime.gpu.device_loop.PreparedPlan`.
        costs: Returns the cost of an iteration, a `runtime.cost.operations.IterationCosts`.
    """

    kind: str
    config: type[Any]
    specs: Callable[[Any], tuple[EngineSpec, ...]]
    condition: str
    inputs: tuple[str, ...]
    request: str
    example: str
    sampling: str
    host_loop: str
    modules: Mapping[str, str]
    example_sizes: str
    eager: str
    model: str = "training.models.mar:MAR"
    published: str | None = None
    published_arguments: tuple[str, ...] = ()
    tokenizer: Mapping[str, bool] = dataclasses.field(default_factory=lambda: {DECODER: True, ENCODER: False})
    trainer: str = "training.loop.mar_trainer:MarTrainer"
    batches: str = "training.data.loader:MicroBatches"
    recorded: str | None = None
    from_data: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"class_num": 1000, "vae_embed_dim": 16})
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: Callable[[Any], tuple[EngineSpec, ...]] = _no_specs
    recap: Callable[[Any], tuple[EngineSpec, ...]] = _no_specs
    first_pass_of_class: bool = False
    grids: Callable[[Any], tuple[Grid, ...]] = _one_grid
    plan: str = "runtime.sampling.constraints:plan_of_one_grid"
    prepared_plan: str = "runtime.gpu.device_loop:PreparedPlan"
    costs: str = "runtime.cost.operations:masked_costs"


def imported(name: str) -> Any:
    """Import what a row names: `package.module:attribute`, or the module `package.module` itself."""
    module, _, attribute = name.partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


GPU_LOOP = "the loop on a GPU"
"""The name of that loop in `Family.refused`."""

RECAP = "ReCAP"
"""Local iterations in `Family.refused`."""

_STEPS_OF_ONE_HEAD = ("mar optimize-steps", "training a head on a frozen backbone")
"""What works on the one head of a masked diffusion model."""

_NAIVE = "the runner naive-onnx"
_CHANGED = (_NAIVE, "mar calibrate", *_STEPS_OF_ONE_HEAD)
"""What draws classes with, or changes, single engines of a masked diffusion model."""

_MEASURED = ("mar plan", "mar bench", *_CHANGED)
"""These, and what predicts or measures the time of its engines."""


_BY_CLASS = ("mar generate-dataset", "mar export-triton", "mar evaluate", "mar study")
"""What asks for the classes of images."""

_BY_SUBJECT = ("mar generate", "mar edit", "mar serve")
"""What asks for classes or prompts."""


_NO_RECAP = {RECAP: "(recap_local_iterations) is for a MAR with bidirectional attention; leave it out"}
_NO_POLICY = {"runtime.Policy": "is for models that drive robots, and this one draws images; call runtime.Generator"}


def _unsupported(kind: str) -> dict[str, str]:
    return {**dict.fromkeys(_MEASURED, f"does not support {kind}; mar generate does"), **_NO_POLICY}


_MAR = Family(
    kind="MAR",
    config=ModelConfig,
    specs=mar_specs,
    condition="labels",
    inputs=("labels",),
    request="runtime.requests.class_subjects:check_classes",
    example="runtime.requests.class_subjects:example_classes",
    sampling="runtime.sampling.mar_sampling",
    host_loop="runtime.loops.host_loop:run_plan",
    modules={
        BACKBONE: "mar_export.graphs.backbone:Backbone",
        CONDITIONING: "mar_export.graphs.diffusion_head:Conditioning",
        DENOISE: "mar_export.graphs.diffusion_head:Denoise",
    },
    example_sizes="mar_export.onnx_export.example_inputs:masked_sizes",
    eager="training.models.reference_loop",
    refused=_NO_POLICY,
)
_CAUSAL = dataclasses.replace(
    _MAR,
    kind="models with causal attention",
    specs=causal_specs,
    host_loop="runtime.loops.causal_loop:run_causal_plan",
    modules={**_MAR.modules, BACKBONE: "mar_export.graphs.causal_backbone:CausalBackbone"},
    example_sizes="mar_export.onnx_export.example_inputs:causal_sizes",
    refused={
        **_unsupported("models with causal attention"),
        **_NO_RECAP,
        GPU_LOOP: "has no cache for causal attention; generate on a CPU with --backend onnxruntime or openvino",
    },
)
_VQ_HEAD = {
    CONDITIONING: "mar_export.graphs.vq_head:VQConditioning",
    DENOISE: "mar_export.graphs.vq_head:VQDenoise",
}
_VQ = dataclasses.replace(
    _MAR,
    kind="models with a vq head",
    modules={**_MAR.modules, **_VQ_HEAD},
    refused=_unsupported("models with a vq head"),
)
_CAUSAL_VQ = dataclasses.replace(_CAUSAL, modules={**_CAUSAL.modules, **_VQ_HEAD})

_RECORDED = "training.loop.recorded_trainer:RecordedTrainer"

_NOVA = Family(
    kind="NOVA",
    config=NovaConfig,
    specs=nova_specs,
    condition="condition",
    inputs=("prompt_embeds",),
    request="runtime.requests.prompt_subjects:check_prompts",
    example="runtime.requests.prompt_subjects:example_prompts",
    sampling="runtime.sampling.nova_sampling",
    host_loop="runtime.loops.host_loop:run_plan",
    modules={
        CONDITION: "mar_export.graphs.nova:Condition",
        BACKBONE: "mar_export.graphs.nova:Backbone",
        CONDITIONING: "mar_export.graphs.nova:Conditioning",
        DENOISE: "mar_export.graphs.nova:Denoise",
    },
    example_sizes="mar_export.onnx_export.example_inputs:prompt_sizes",
    model="training.models.nova:Nova",
    eager="training.models.nova_reference",
    trainer=_RECORDED,
    recorded="runtime.recordings.captions:Captions",
    batches="training.data.caption_batches:CaptionBatches",
    from_data={"image_height": 64, "image_width": 64, "image_dim": 3, "text_token_dim": 1, "text_token_len": 1},
    published="training.checkpoints.nova_folder",
    costs="runtime.cost.nova_operations:nova_costs",
    refused={
        **dict.fromkeys(_CHANGED, "does not support NOVA; mar generate does"),
        _NAIVE: "does not support NOVA; choose others with --runner",
        **_NO_POLICY,
        **_NO_RECAP,
        "mar train --profile": "is for models of images in classes",
        **dict.fromkeys(_BY_CLASS, "draws classes, and a NOVA draws from text; mar generate and mar serve do"),
        "mar import": "does not support NOVA; mar export reads its folder",
        "mar export --image-size": "does not support NOVA, whose tables of positions are not trained for other sizes",
    },
    optional=nova_text_specs,
)

_DRIVES = "a UVA drives a robot; call runtime.Policy in Python"
_UVA = Family(
    kind="UVA",
    config=UvaConfig,
    specs=uva_specs,
    condition="condition",
    inputs=("observation",),
    request="runtime.requests.observations:check_observations",
    example="runtime.requests.observations:example_observations",
    sampling="runtime.sampling.uva_sampling",
    host_loop="runtime.loops.host_loop:run_plan",
    modules={
        CONDITION: "mar_export.graphs.uva:Condition",
        BACKBONE: "mar_export.graphs.uva:Backbone",
        CONDITIONING: _MAR.modules[CONDITIONING],
        DENOISE: _MAR.modules[DENOISE],
    },
    example_sizes="mar_export.onnx_export.example_inputs:policy_sizes",
    model="training.models.uva:Uva",
    eager="training.models.uva_reference",
    trainer=_RECORDED,
    recorded="runtime.recordings.chunks:Chunks",
    batches="training.data.chunk_batches:ChunkBatches",
    from_data={
        "action_dim": 1,
        "text_dim": 0,
        "state_dim": 0,
        "state_steps": 0,
        "action_scale": (),
        "action_offset": (),
    },
    published="training.checkpoints.uva_file",
    costs="runtime.cost.uva_operations:uva_costs",
    tokenizer={ENCODER: True},
    refused={
        **dict.fromkeys(("mar bench", *_CHANGED), f"is for models of images, and {_DRIVES}"),
        RECAP: "(recap_local_iterations) is for a MAR, and a UVA drives a robot; leave it out",
        "mar train --profile": "is for models of images in classes, and a UVA drives a robot",
        **dict.fromkeys((*_BY_SUBJECT, *_BY_CLASS), f"draws classes, and {_DRIVES}"),
        "mar import": "does not support UVA; mar export reads its file",
        "mar export --image-size": "does not support UVA, whose frames have 256x256 pixels",
        "mar export --encoder": "is for models of images; a UVA is exported with the encoder that its file has",
    },
)

_HIMAR = dataclasses.replace(
    _MAR,
    kind="Hi-MAR",
    config=HimarConfig,
    specs=himar_specs,
    sampling="runtime.sampling.himar_sampling",
    host_loop="runtime.loops.himar_loop:run_himar_plan",
    modules={
        **_MAR.modules,
        BACKBONE: "mar_export.graphs.himar:SmallBackbone",
        BACKBONE2: "mar_export.graphs.himar:BigBackbone",
        CONDITIONING2: "mar_export.graphs.himar:BigConditioning",
        DENOISE2: "mar_export.graphs.himar:BigDenoise",
    },
    example_sizes="mar_export.onnx_export.example_inputs:grids_sizes",
    model="training.models.himar:Himar",
    eager="training.models.himar_reference",
    batches="training.data.himar_batches:HimarBatches",
    published="training.checkpoints.himar_file",
    published_arguments=("name", "tokenizer"),
    refused={
        **dict.fromkeys(_STEPS_OF_ONE_HEAD, "does not support Hi-MAR; mar generate does"),
        "mar edit": "regenerates a part of an image, and a Hi-MAR draws a low-resolution grid of the whole image first",
        "mar export --image-size": "does not support Hi-MAR, whose two grids were trained together",
        _NAIVE: "does not support Hi-MAR; choose others with --runner",
        **_NO_POLICY,
        **_NO_RECAP,
    },
    grids=lambda config: config.grids,
    plan="runtime.sampling.himar_sampling:himar_plan",
    prepared_plan="runtime.gpu.himar_plan:PreparedHimarPlan",
    costs="runtime.cost.himar_operations:himar_costs",
)


def _with_reuse(family: Family) -> Family:
    """Return the row of a family whose backbone is MAR's, which can reuse keys and values, and its first pass."""
    modules = {FULL: "mar_export.graphs.recap:FullBackbone", LOCAL: "mar_export.graphs.recap:LocalBackbone"}
    return dataclasses.replace(
        family,
        recap=recap_specs,
        first_pass_of_class=True,
        modules={**family.modules, **modules},
        prepared_plan="runtime.gpu.recap_plan:PreparedRecapPlan",
    )


FAMILIES: dict[str, Family] = {
    DEFAULT: _with_reuse(_MAR),
    "mar-causal": _CAUSAL,
    "mar-vq": _with_reuse(_VQ),
    "mar-causal-vq": _CAUSAL_VQ,
    NOVA: _NOVA,
    UVA: _UVA,
    HIMAR: _HIMAR,
}
"""All families, by the name that a config has as `family`."""


def family_of(config: FamilyConfig) -> Family:
    """Return the row of a model."""
    return FAMILIES[config.family]


def drawn_grids(config: FamilyConfig) -> tuple[Grid, ...]:
    """Return the grids of tokens that a model draws, in order; the last is the image."""
    return family_of(config).grids(config)


def drawn_tokens(config: FamilyConfig) -> int:
    """Return the number of tokens of all grids that a model draws: L, or P where there are several."""
    return sum(rows * columns for rows, columns in drawn_grids(config))


def engine_specs(config: FamilyConfig) -> dict[str, EngineSpec]:
    """Return the specs of the engines of the sampling loop for a model, by name."""
    return {spec.name: spec for spec in family_of(config).specs(config)}


def recap_specs_of(config: FamilyConfig) -> dict[str, EngineSpec]:
    """Return the specs of the engines of ReCAP for a model, by name; nothing where its family has none."""
    return {spec.name: spec for spec in family_of(config).recap(config)}


def loop_specs(config: FamilyConfig, engines: Collection[str]) -> dict[str, EngineSpec]:
    """Return the specs of the engines that the sampling loop of an artifact can call, by name.

    Args:
        config: The config of the model.
        engines: The names of the artifact's engines.
    """
    recap = {name: spec for name, spec in recap_specs_of(config).items() if name in engines}
    return {**engine_specs(config), **recap}


def optional_specs(config: FamilyConfig) -> dict[str, EngineSpec]:
    """Return the specs of the engines that an artifact of a model may have too, by name; not those of its tokenizer."""
    optional = {spec.name: spec for spec in family_of(config).optional(config)}
    return {**optional, **recap_specs_of(config)}


def request_inputs(config: FamilyConfig, engines: Collection[str]) -> tuple[str, ...]:
    """Return the named arguments that a request must have, for a model and the names of an artifact's engines."""
    return ("prompt",) if TEXT_ENCODER in engines else family_of(config).inputs


def tokenizer_specs_of(config: FamilyConfig) -> dict[str, EngineSpec]:
    """Return the specs of the engines of a KL tokenizer for a model, by name."""
    return tokenizer_specs(config, any_size=len(drawn_grids(config)) > 1)


def check_supported(config: FamilyConfig, command: str) -> Any:
    """Return the config of a model, after checking that a command supports its family.

    The class of the config is then one that the command knows.

    Args:
        config: The config of the model.
        command: The command as `Family.refused` names it, for example `mar bench`.

    Raises:
        RequestError: It does not.
    """
    refused = family_of(config).refused
    if command in refused:
        raise RequestError(f"{command} {refused[command]}")
    return config


def stored_family(values: Mapping[str, Any], where: str) -> Family:
    """Return the row of the model whose config stored values describe.

    Raises:
        ConfigError: This version has no such family; the message names `where`.
    """
    name = values.get(FAMILY_KEY, DEFAULT)
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(dict.fromkeys(FAMILIES))
        raise ConfigError(f"{where}: the family {truncate(name)} is unknown; this version has {known}")
    return FAMILIES[name]


def config_class(values: Mapping[str, Any], where: str) -> type[Any]:
    """Return the class of the config that stored values describe; see `stored_family`."""
    return stored_family(values, where).config


def parse_config(values: Mapping[str, Any], where: str) -> FamilyConfig:
    """Return the config that stored values describe, the inverse of `FamilyConfig.to_dict`.

    Raises:
        ConfigError: The family or a field is unknown, or a value is impossible; the message names `where`.
    """
    fields = {name: value for name, value in values.items() if name != FAMILY_KEY}
    config: FamilyConfig = config_class(values, where).from_dict(fields, where)
    return config
