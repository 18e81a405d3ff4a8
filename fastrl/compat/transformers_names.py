"""Names that transformers and its neighbours had in the days of TRL 0.4 to 0.11.

What moved is taken from where it is; what has no successor of the same meaning is defined in
`transformers_classic`.
"""

from __future__ import annotations

_HERE = "fastrl.compat.transformers_classic"
_FILTERING = (
    f"{_HERE}:top_k_top_p_filtering",
    "TopKLogitsWarper and TopPLogitsWarper of transformers.generation",
)
_ADAMW = (f"{_HERE}:AdamW", "torch.optim.AdamW, whose weight_decay is 0.01 unless given, not 0")

# Module -> name -> (what it is today as "module:name", what to write instead).
GONE: dict[str, dict[str, tuple[str, str]]] = {
    "transformers": {
        "AdamW": _ADAMW,
        "AutoModelForVision2Seq": (
            "transformers:AutoModelForImageTextToText",
            "transformers.AutoModelForImageTextToText",
        ),
        "top_k_top_p_filtering": _FILTERING,
    },
    "transformers.generation": {"top_k_top_p_filtering": _FILTERING},
    "transformers.generation.utils": {"top_k_top_p_filtering": _FILTERING},
    "transformers.models.auto.modeling_auto": {
        "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES": (
            "transformers.models.auto.modeling_auto:MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
            "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        )
    },
    "transformers.optimization": {"AdamW": _ADAMW},
    "huggingface_hub": {
        "HfFolder": (f"{_HERE}:HfFolder", "huggingface_hub.get_token, login and logout")
    },
    "peft": {
        "prepare_model_for_int8_training": (
            "peft:prepare_model_for_kbit_training",
            "peft.prepare_model_for_kbit_training",
        )
    },
}

# Module -> its name today.
MOVED = {"transformers.deepspeed": "transformers.integrations.deepspeed"}
