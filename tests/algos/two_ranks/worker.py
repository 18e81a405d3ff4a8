"""One rank of a two-rank run: torchrun … worker.py TASK FOLDER; writes FOLDER/TASK.<rank>.pt."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from fastrl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from tests.two_ranks import leave

VOCAB = 32
ROWS = 32


def make_trainer(batch_size, **settings):
    warnings.simplefilter("ignore")
    words = Tokenizer(models.WordLevel({"a": 0, "<pad>": VOCAB - 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<pad>"
    )
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        ids = {"eos_token_id": VOCAB - 1, "bos_token_id": VOCAB - 1}
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
        language_model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, **sizes, **ids))
        model = AutoModelForCausalLMWithValueHead.from_pretrained(language_model)
        torch.nn.init.normal_(model.v_head.summary.weight, std=0.2)
        made.append(model)
    config = PPOConfig(batch_size=batch_size, ppo_epochs=2, **settings)
    optimizer = torch.optim.SGD(made[0].parameters(), lr=0.1)
    return PPOTrainer(config, *made, tokenizer, optimizer=optimizer)


def rows():
    rng = np.random.default_rng(7)

    def ragged(low, high):
        return [
            torch.from_numpy(rng.integers(0, VOCAB, rng.integers(low, high))) for _ in range(ROWS)
        ]

    scores = [torch.tensor(float(s)) for s in rng.normal(size=ROWS)]
    return ragged(2, 6), ragged(2, 20), scores


def share(part, whole):
    """This rank's half of each list."""
    size = len(whole[0]) // 2
    return tuple(column[part * size : (part + 1) * size] for column in whole)


def global_statistics(rank, world):
    """Two steps over 32 rows in all; the statistics that are numbers, and the weights."""
    batch = ROWS // world
    settings = {"global_statistics": True, "whiten_rewards": True, "use_score_scaling": True}
    trainer = make_trainer(batch, mini_batch_size=batch, max_grad_norm=1.0, **settings)
    assert trainer.accelerator.num_processes == world
    mine = share(rank, rows()) if world == 2 else rows()
    stats = [trainer.step(*mine) for _ in range(2)]
    model = trainer.accelerator.unwrap_model(trainer.model)
    numbers = [{k: v for k, v in s.items() if isinstance(v, float)} for s in stats]
    return {"stats": numbers, "weights": model.state_dict()}


def bad_row_on_rank_one(rank, world):
    """What each rank raises when only rank 1 is given a NaN score; and whether weights moved."""
    trainer = make_trainer(ROWS // 2)
    assert trainer.accelerator.num_processes == world == 2
    before = [p.clone() for p in trainer.model_params]
    queries, responses, scores = share(rank, rows())
    if rank == 1:
        scores[3] = torch.tensor(float("nan"))
    try:
        trainer.step(queries, responses, scores)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    same = all(torch.equal(a, b) for a, b in zip(before, trainer.model_params, strict=True))
    return {"raised": raised, "same": same}


def main():
    task, folder = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    result = {"global_statistics": global_statistics, "bad_row": bad_row_on_rank_one}[task](
        rank, world
    )
    torch.save(result, Path(folder) / f"{task}.{rank}.pt")
    leave()


if __name__ == "__main__":
    main()
