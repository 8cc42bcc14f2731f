"""Flags of the commands that talk: the run, its encoder and vocoder, and how replies are drawn.

A main adopts these flags and those of `compilation_cache` by `flags.adopt_module_key_flags`, so
that its --help lists them. JAX is imported after the flags are checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from speechgpt_jax import compilation_cache, prompts
from speechgpt_jax.arguments import (
    at_least,
    define,
    existing_folder,
    finite_float,
    key_in,
    nonempty,
    positive_int,
    seed,
    utf8,
)
from speechgpt_jax.decoding import defaults
from speechgpt_jax.errors import UserError
from speechgpt_jax.shipped import (
    SHIPPED_HUBERT,
    SHIPPED_MODEL,
    SHIPPED_VOCODER,
    SHIPPED_VOICE,
    default_speaker,
)

if TYPE_CHECKING:
    from speechgpt_jax.decoding.conversation import Conversation, SpeechModel

RUN = define(
    "run", existing_folder, SHIPPED_MODEL, "Folder of a training run; by default the shipped model."
)
HUBERT_FOLDER = define(
    "hubert", existing_folder, SHIPPED_HUBERT, "Folder of HuBERT and its centroids."
)
VOCODER_FOLDER = define("vocoder", existing_folder, SHIPPED_VOCODER, "Folder of the unit vocoder.")
SPEAKER = define(
    "speaker",
    nonempty,
    None,
    f"Name or index of the speaker whose voice the vocoder uses; by default {SHIPPED_VOICE} of the"
    " shipped vocoder, the first speaker of another.",
)
PREFIX = define(
    "prefix", utf8, prompts.DEFAULT_PREFIX, "System prompt with which the run was trained."
)
TEMPERATURE = define(
    "temperature",
    finite_float(at_least=0),
    0.0,
    "Divides the logits before sampling; 0 always takes the most likely token.",
)
TOP_K = define(
    "top_k",
    at_least(0, at_most=defaults.LARGEST_TOP_K),
    defaults.TOP_K,
    "Sample from this many most likely tokens; 0: all.",
)
TOP_P = define(
    "top_p",
    finite_float(above=0, at_most=1),
    defaults.TOP_P,
    "Sample from the fewest tokens whose probabilities add up to this.",
)
MIN_P = define(
    "min_p",
    finite_float(at_least=0, at_most=1),
    0.0,
    "Drop tokens less likely than this times the most likely one.",
)
REPETITION_PENALTY = define(
    "repetition_penalty", finite_float(above=0), 1.0, "Above 1, tokens in the text are less likely."
)
SEED = define(
    "seed",
    seed,
    None,
    "Repeat the draws of this seed; by default new ones.",
)
MAX_NEW_TOKENS = define(
    "max_new_tokens", positive_int, defaults.MAX_NEW_TOKENS, "Longest reply, in tokens."
)
CONTEXT = define(
    "context", at_least(2), defaults.CONTEXT, "Most tokens of a prompt and its reply together."
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16"],
    "dtype of weights and activations; by default the run's, on a CPU float32, which is faster"
    " there.",
)
ENGINE = define(
    "engine",
    nonempty,
    None,
    "Address of a server with OpenAI's API that runs the export of --run, such as"
    " http://127.0.0.1:8001/v1; then no weights are loaded here. The environment variable"
    " SPEECHGPT_ENGINE_KEY is its key.",
)
INT8 = flags.DEFINE_bool("int8", False, "Round the weights of the projections to int8.")
PREFIX_CACHE = define(
    "prefix_cache",
    at_least(0),
    defaults.PREFIX_CACHE,
    "Most MiB of keys and values of earlier prompts, which later prompts that begin alike don't"
    " compute again; 0: none.",
)


def define_history_tokens() -> flags.FlagHolder:
    """Defines --history_tokens, for commands in which one turn follows another."""
    return define(
        "history_tokens",
        at_least(0),
        0,
        "Most tokens of earlier turns that the model reads; models trained on single questions, as"
        " in the recipes, answer best without.",
    )


def define_mesh() -> flags.FlagHolder:
    """Defines --mesh, for the `devices` of `load_speech_model`."""
    return define(
        "mesh",
        positive_int,
        None,
        "Number of this process's devices over which the model is sharded; by default one.",
    )


def load_speech_model(**kwargs: Any) -> SpeechModel:
    """The model that the flags name; kwargs are other arguments of `SpeechModel.from_run`."""
    if MAX_NEW_TOKENS.value >= CONTEXT.value:
        raise UserError(
            f"--max_new_tokens={MAX_NEW_TOKENS.value} must be below --context={CONTEXT.value},"
            " which holds the prompt too."
        )
    if ENGINE.value and (DTYPE.value or INT8.value or PREFIX_CACHE.present):
        raise UserError(
            "--dtype, --int8 and --prefix_cache are for weights that are loaded here, and with"
            " --engine the server has them; leave them out."
        )
    if ENGINE.value and kwargs.get("devices"):
        raise UserError(
            "--mesh is for weights that are loaded here, and with --engine the server has them;"
            " leave it out."
        )
    compilation_cache.use(by_default=True)
    from speechgpt_jax.decoding.conversation import SpeechModel
    from speechgpt_jax.speech.vocoder.vocoder import load_config

    # A wrong speaker is reported before the model is loaded, which may take minutes.
    load_config(VOCODER_FOLDER.value).speaker_index(_speaker())
    if ENGINE.value:
        kwargs["api_key"] = key_in("SPEECHGPT_ENGINE_KEY")
    else:
        kwargs |= {
            "dtype": DTYPE.value,
            "int8": INT8.value,
            "prefix_cache": PREFIX_CACHE.value,
        }
    return SpeechModel.from_run(
        RUN.value,
        server=ENGINE.value,
        hubert=HUBERT_FOLDER.value,
        vocoder=VOCODER_FOLDER.value,
        context=CONTEXT.value,
        **kwargs,
    )


def start_conversation(model: SpeechModel, **kwargs: Any) -> Conversation:
    """A conversation with the settings of the flags; kwargs are its other fields."""
    from speechgpt_jax.decoding.conversation import Conversation
    from speechgpt_jax.decoding.sampling import Sampling

    return Conversation(
        model,
        speaker=_speaker(),
        prefix=PREFIX.value,
        sampling=Sampling(
            TEMPERATURE.value,
            TOP_K.value,
            TOP_P.value,
            MIN_P.value,
            REPETITION_PENALTY.value,
        ),
        seed=SEED.value,
        max_new_tokens=MAX_NEW_TOKENS.value,
        **kwargs,
    )


def _speaker() -> int | str:
    """The speaker of --speaker, or the default one of the vocoder."""
    return SPEAKER.value or default_speaker(VOCODER_FOLDER.value)
