"""Online DPO whose pairs vLLM draws."""

from __future__ import annotations

from datasets import Dataset

from fastrl import OnlineDPOConfig, OnlineDPOTrainer


def test_vllm_draws_both_answers_of_a_pair(tmp_path, tiny, fake_vllm, tokenizer):
    vllm = fake_vllm()
    tiny("qwen2", tie_word_embeddings=False).save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    told = []

    def judge(prompts, completion_ids, **_):
        told.append((prompts, completion_ids))
        return [float(sum(ids)) for ids in completion_ids]

    args = OnlineDPOConfig(
        str(tmp_path),
        use_vllm=True,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_new_tokens=4,
        max_length=20,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = Dataset.from_dict({"prompt": ["!", '"', "#", "$"]})
    trainer = OnlineDPOTrainer(str(tmp_path / "policy"), None, judge, args, None, rows)
    trainer.train()
    assert vllm.LLM.made[-1].arguments["max_model_len"] == 24
    assert vllm.LLM.made[-1].arguments["gpu_memory_utilization"] == 0.55
    for prompts, ids in told:
        assert prompts[0::2] == prompts[1::2] and sorted(prompts[0::2]) == ["!", '"', "#", "$"]
        assert any(one != other for one, other in zip(ids[0::2], ids[1::2], strict=True))
    kl = [row["objective/kl"] for row in trainer.state.log_history if "loss" in row]
    assert abs(kl[0]) < 1e-4 < abs(kl[1])
