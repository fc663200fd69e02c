"""Writes the folders of models that vLLM serves in tests, from one GGUF file.

Run with the python of the test environment: write_model_folders.py GGUF FOLDER. Below FOLDER it
makes "SmolLM2-135M-Instruct", the model of the file with weights of 32 bits, and "tiny", two
random layers with the same tokenizer, which is as good for protocols and much faster.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

# Large enough for random weights to have opinions: the most likely token gets a few per cent.
_SPREAD = 0.2


def main(gguf: Path, folder: Path) -> None:
    """Read the file once and write both models with its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    real = _unquantized(gguf)
    models = {"SmolLM2-135M-Instruct": real, "tiny": _tiny(real.config)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def _unquantized(gguf: Path) -> LlamaForCausalLM:
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # The loaded model remembers where it came from, and vLLM would look for a quantized file.
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    model.load_state_dict(loaded.state_dict())
    return model


def _tiny(like: LlamaConfig) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=like.vocab_size,
            bos_token_id=like.bos_token_id,
            eos_token_id=like.eos_token_id,
            pad_token_id=like.pad_token_id,
            max_position_embeddings=2048,
            num_hidden_layers=2,
            hidden_size=64,
            intermediate_size=128,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            tie_word_embeddings=True,
            initializer_range=_SPREAD,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
