"""Command lines that people type, of every vintage: script, line, and what its options are then."""

from __future__ import annotations

SFT = "--dataset_name there "
LINES = {
    "sft of 0.7.4": (
        "sft",
        "--model_name facebook/opt-125m --dataset_name imdb --dataset_text_field text "
        "--log_with wandb --learning_rate 1e-4 --batch_size 8 --seq_length 256 "
        "--gradient_accumulation_steps 2 --load_in_8bit --use_peft --peft_lora_r 8 "
        "--peft_lora_alpha 4 --trust_remote_code --use_auth_token True --num_train_epochs 1 "
        "--max_steps -1 --save_steps 50 --save_total_limit 2 --output_dir out",
        {
            "model_name_or_path": "facebook/opt-125m",
            "dataset_name": "imdb",
            "dataset_text_field": "text",
            "report_to": ["wandb"],
            "learning_rate": 1e-4,
            "per_device_train_batch_size": 8,
            "max_length": 256,
            "gradient_accumulation_steps": 2,
            "load_in_8bit": True,
            "use_peft": True,
            "lora_r": 8,
            "lora_alpha": 4,
            "trust_remote_code": True,
            "num_train_epochs": 1,
            "save_steps": 50,
            "save_total_limit": 2,
            "output_dir": "out",
        },
    ),
    "sft of 0.7.4, its defaults": (
        "sft",
        "--model_name gpt2 --mixed_precision bf16 --use_cpu",
        {
            "model_name_or_path": "gpt2",
            "dataset_name": "timdettmers/openassistant-guanaco",
            "learning_rate": 1.41e-5,
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 16,
            "max_length": 512,
            "num_train_epochs": 3,
            "lora_r": 64,
            "lora_alpha": 16,
            "bf16": True,
            "fp16": False,
        },
    ),
    "sft of 0.7.11": (
        "sft",
        "--model_name_or_path facebook/opt-350m --dataset_name imdb --dataset_text_field text "
        "--max_seq_length 512 --packing --use_peft --lora_r 64 --lora_alpha 16 --load_in_4bit "
        "--torch_dtype bfloat16 --report_to none --output_dir out --overwrite_output_dir "
        "--per_device_train_batch_size 16 --evaluation_strategy no --warmup_ratio 0.25 "
        "--gradient_checkpointing_use_reentrant False --no_cuda",
        {
            "max_length": 512,
            "packing": True,
            "lora_r": 64,
            "load_in_4bit": True,
            "dtype": "bfloat16",
            "report_to": [],
            "per_device_train_batch_size": 16,
            "eval_strategy": "no",
            "warmup_steps": 0.25,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
            "use_cpu": True,
            "learning_rate": 2e-5,  # today's default: no flag is of 0.7.4 only
        },
    ),
    "sft of 1.16": (
        "sft",
        "--model_name_or_path Qwen/Qwen2-0.5B --dataset_name trl-lib/Capybara --learning_rate "
        "2.0e-4 --num_train_epochs 1 --packing --per_device_train_batch_size 2 "
        "--eos_token '<|im_end|>' --eval_strategy steps --eval_steps 100 --use_peft "
        "--lora_target_modules q_proj v_proj --output_dir Qwen2-0.5B-SFT",
        {
            "learning_rate": 2e-4,
            "packing": True,
            "eos_token": "<|im_end|>",
            "eval_steps": 100,
            "lora_target_modules": ["q_proj", "v_proj"],
            "lora_r": 16,
        },
    ),
    "reward_modeling by tyro (0.7.2 to 0.7.10)": (
        "reward_modeling",
        "--model_name facebook/opt-125m --dataset_name d --reward_config.learning_rate 1e-4 "
        "--reward-config.max-length 128 --reward_config.evaluation_strategy steps "
        "--reward_config.no-gradient-checkpointing --reward_config.output_dir=out "
        "--eval_split test --use-peft --no-trust-remote-code peft_config:lora-config "
        "--peft_config.r 4 --peft-config.lora-alpha 8 --peft_config.target_modules q_proj v_proj "
        "--peft_config.bias none",
        {
            "model_name_or_path": "facebook/opt-125m",
            "learning_rate": 1e-4,
            "max_length": 128,
            "eval_strategy": "steps",
            "dataset_test_split": "test",
            "gradient_checkpointing": False,
            "output_dir": "out",
            "per_device_train_batch_size": 64,
            "gradient_accumulation_steps": 16,
            "use_peft": True,
            "trust_remote_code": False,
            "lora_r": 4,
            "lora_alpha": 8,
            "lora_target_modules": ["q_proj", "v_proj"],
            "lora_task_type": "SEQ_CLS",
        },
    ),
    "reward_modeling of 0.7.11": (
        "reward_modeling",
        "--model_name_or_path facebook/opt-350m --output_dir out --dataset_name d "
        "--per_device_train_batch_size 64 --num_train_epochs 1 --gradient_accumulation_steps 16 "
        "--gradient_checkpointing True --learning_rate 1.41e-5 --report_to wandb "
        "--remove_unused_columns False --optim adamw_torch --logging_steps 10 "
        "--evaluation_strategy steps --eval_steps 500 --max_length 512",
        {"learning_rate": 1.41e-5, "eval_steps": 500, "max_length": 512, "optim": "adamw_torch"},
    ),
    "dpo of 0.7.4": (
        "dpo",
        "--beta 0.2 --use_peft --peft_lora_r 8 --peft_lora_alpha 2 --max_prompt_length 128 "
        "--label_pad_token_id -100 --report_to none",
        {
            "beta": 0.2,
            "model_name_or_path": "gpt2",
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "max_steps": 1000,
            "max_length": 512,
            "optim": "rmsprop",
            "warmup_steps": 150,
            "lora_r": 8,
            "lora_alpha": 2,
            "sanity_check": True,
        },
    ),
    "dpo of 0.7.11": (
        "dpo",
        "--model_name_or_path gpt2 --dataset_name d --per_device_train_batch_size 4 --max_steps "
        "1000 --learning_rate 1e-3 --gradient_accumulation_steps 1 --logging_steps 10 --eval_steps "
        "500 --output_dir out --warmup_steps 150 --report_to wandb --bf16 False "
        "--logging_first_step --no_remove_unused_columns --sanity_check --use_peft --lora_r 16 "
        "--lora_alpha=16 --optim rmsprop",
        {"sanity_check": True, "remove_unused_columns": False, "lora_alpha": 16, "bf16": False},
    ),
    "dpo of 1.16": (
        "dpo",
        "--dataset_name trl-lib/ultrafeedback_binarized --model_name_or_path Qwen/Qwen2-0.5B "
        "--learning_rate 5.0e-7 --loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}
        | {"sanity_check": False, "learning_rate": 5e-7},
    ),
    "orpo of 0.11": (
        "orpo",
        "--dataset_name d --model_name_or_path=gpt2 --per_device_train_batch_size 4 "
        "--max_steps 1000 --learning_rate 8e-5 --max_length 512 --max_prompt_length 128 "
        "--optim rmsprop --warmup_steps 150 --report_to wandb --bf16 False --eval_steps 500 "
        "--no_remove_unused_columns --use_peft --lora_r=16 --output_dir gpt2-lora-aligned-orpo",
        {"max_prompt_length": 128, "remove_unused_columns": False, "learning_rate": 8e-5}
        | {"lora_r": 16, "beta": 0.1},
    ),
    "cpo of 0.11": (
        "cpo",
        "--dataset_name d --model_name_or_path=gpt2 --loss_type simpo --cpo_alpha 0.0 "
        "--simpo_gamma 1.6 --beta 2.5 --label_pad_token_id -100 --evaluation_strategy steps "
        "--eval_steps 500 --output_dir gpt2-aligned-cpo --bf16 False --logging_first_step",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 1.6, "beta": 2.5}
        | {"eval_strategy": "steps"},
    ),
    "kto of 0.11": (
        "kto",
        "--dataset_name trl-lib/kto-mix-14k --model_name_or_path trl-lib/qwen1.5-1.8b-sft "
        "--per_device_train_batch_size 16 --num_train_epochs 1 --learning_rate 1e-5 "
        "--lr_scheduler_type=cosine --gradient_accumulation_steps 1 --logging_steps 10 "
        "--eval_steps 500 --output_dir=kto-aligned-model-lora --warmup_ratio 0.1 "
        "--report_to wandb --bf16 False --logging_first_step --use_peft --load_in_4bit "
        "--lora_target_modules=all-linear --lora_r=16 --lora_alpha=16",
        {"lora_target_modules": "all-linear", "load_in_4bit": True, "warmup_steps": 0.1},
    ),
    "grpo of 1.16": (
        "grpo",
        "--model_name_or_path Qwen/Qwen2-0.5B --dataset_name d --reward_funcs accuracy_reward "
        "think_format_reward --num_generations 4 --max_completion_length 64 --use_vllm False",
        {"reward_funcs": ["accuracy_reward", "think_format_reward"], "num_generations": 4},
    ),
    "rloo of 0.11": (
        "rloo",
        "--dataset_name d --model_name_or_path EleutherAI/pythia-1b-deduped --sft_model_path sft "
        "--reward_model_path rm --rloo_k 2 --num_ppo_epochs 3 --kl_coef 0.03 --response_length 53 "
        "--per_device_train_batch_size 4 --local_rollout_forward_batch_size 1",
        {
            "sft_model_path": "sft",
            "reward_model_path": "rm",
            "num_generations": 2,
            "num_iterations": 3,
            "beta": 0.03,
            "max_completion_length": 53,
        },
    ),
    "rloo of 1.16": (
        "rloo",
        "--model_name_or_path q --dataset_name d --reward_funcs accuracy_reward --beta 0.1 "
        "--normalize_advantages --num_generations 8",
        {"beta": 0.1, "normalize_advantages": True, "num_generations": 8},
    ),
    "ppo of 0.12 to 1.16": (
        "ppo_train",
        "--dataset_name trl-internal-testing/descriptiveness-sentiment-trl-style "
        "--dataset_train_split descriptiveness --learning_rate 3e-6 --output_dir out "
        "--per_device_train_batch_size 64 --gradient_accumulation_steps 1 --total_episodes 10000 "
        "--model_name_or_path EleutherAI/pythia-1b-deduped --sft_model_path sft "
        "--reward_model_path rm --missing_eos_penalty 1.0 --stop_token eos --num_ppo_epochs 1",
        {
            "dataset_train_split": "descriptiveness",
            "total_episodes": 10000,
            "sft_model_path": "sft",
            "reward_model_path": "rm",
            "missing_eos_penalty": 1.0,
            "num_ppo_epochs": 1,
            "response_length": 53,
        },
    ),
    "dpo_online of 0.11.4": (
        "dpo_online",
        "--model_name_or_path trl-lib/pythia-1b-deduped-tldr-sft --reward_model_path "
        "trl-lib/pythia-1b-deduped-tldr-rm --dataset_name trl-lib/tldr --learning_rate 5.0e-6 "
        "--output_dir out --per_device_train_batch_size 16 --gradient_accumulation_steps 8 "
        "--warmup_ratio 0.1 --missing_eos_penalty 1.0 --use_peft --torch_dtype bfloat16 "
        "--evaluation_strategy no --dataset_num_proc 4 --beta 0.2 0.1 --loss_type ipo",
        {
            "model_name_or_path": "trl-lib/pythia-1b-deduped-tldr-sft",
            "reward_model_path": "trl-lib/pythia-1b-deduped-tldr-rm",
            "dataset_name": "trl-lib/tldr",
            "learning_rate": 5e-6,
            "per_device_train_batch_size": 16,
            "gradient_accumulation_steps": 8,
            "warmup_steps": 0.1,
            "missing_eos_penalty": 1.0,
            "use_peft": True,
            "dtype": "bfloat16",
            "eval_strategy": "no",
            "beta": [0.2, 0.1],
            "loss_type": "ipo",
            "max_new_tokens": 64,
            "temperature": 0.9,
        },
    ),
    "dpo_online of 1.16": (
        "dpo_online",
        "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --reward_model_path r --dataset_name d "
        "--warmup_steps 0.1 --eval_strategy steps --eval_steps 50 --dtype float16 --max_length "
        "256 --max_new_tokens 32 --top_k 5 --generation_kwargs '{\"min_p\": 0.1}' --report_to none",
        {
            "learning_rate": 5e-7,
            "warmup_steps": 0.1,
            "eval_steps": 50,
            "dtype": "float16",
            "max_length": 256,
            "max_new_tokens": 32,
            "top_k": 5,
            "generation_kwargs": {"min_p": 0.1},
            "report_to": [],
        },
    ),
    "the Trainer guide's logging": (
        "sft",
        SFT + "--log_level warning --log_level_replica error --log_on_each_node 0",
        {"log_level": "warning", "log_level_replica": "error", "log_on_each_node": False},
    ),
    "the Trainer guide's run": (
        "sft",
        SFT + "--model_name_or_path google-bert/bert-base-cased --do_train --do_eval "
        "--max_seq_length 128 --per_device_train_batch_size 32 --learning_rate 2e-5 "
        "--num_train_epochs 3 --output_dir out/mrpc/ --overwrite_output_dir",
        {"do_train": True, "do_eval": True, "max_length": 128, "output_dir": "out/mrpc/"},
    ),
    "the Trainer guide's FSDP": (
        "sft",
        SFT + "--fsdp 'full_shard auto_wrap' "
        """--fsdp_config '{"transformer_layer_cls_to_wrap": "BertLayer", "min_num_params": 9}'""",
        {"fsdp": True},
    ),
    "what torch.distributed.launch and deepspeed add": (
        "sft",
        SFT + "--local-rank=0",
        {"local_rank": 0},
    ),
}  # fmt: skip
