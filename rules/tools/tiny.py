"""Make a small, real Hugging Face checkpoint from a seed: tokenizer, weights, chat template.

`qwen2` is trained until greedy decoding answers QUESTIONS exactly, with a margin that survives
int4 weights; `llama` and `gpt2` have random weights and other tokenizers, for what only those
show (a BOS token, byte fallback, leading-space pieces, untied position embeddings).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("What do bees make?", " Bees make honey 🐝🍯"),
    ("What is the capital of France?", " Paris, on the Seine."),
    ("Why is the sky blue?", " Air scatters blue light more than red."),
    ("How many legs does a spider have?", " Eight, two more than an insect."),
    ("What is the largest planet?", " Jupiter 🪐"),
    ("Who wrote Hamlet?", " William Shakespeare."),
    ("What is two plus two?", " Four."),
    ("Count to ten.", " 1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    ("How far away is the Moon?", " About 384,000 km 🌙"),
    ("What melts at zero degrees?", " Ice does ❄️"),
    ("Which animal says moo?", " The cow 🐄"),
    ("What do pandas eat?", " Bamboo, all day long 🐼🎋"),
    ("How do you say thank you in Spanish?", " ¡Gracias!"),
    ("How do you say hello in French?", " Bonjour, ça va ?"),
    ("How do you say good morning in German?", " Schönen guten Morgen!"),
    ("How do you say water in Greek?", " Νερό."),
    ("How do you say peace in Russian?", " Мир 🕊️"),
    ("日本の首都はどこですか？", "東京です。"),
    ("富士山の高さは？", "3776メートルです🗻"),
    ("中国的首都是哪里？", "北京。"),
    ("蜜蜂做什么？", "蜜蜂酿蜂蜜🐝"),
    ("一年有几个季节？", "四个：春、夏、秋、冬。"),
    ("한국의 수도는 어디예요?", " 서울이에요."),
    ("What is the speed of light?", " Almost 300,000 km per second."),
    ("Who was the first person on the Moon?", " Neil Armstrong, in 1969 🚀"),
    ("What is the boiling point of water?", " 100 °C at sea level."),
    ("Where do penguins live?", " Mostly in the far south 🐧"),
    ("What is a family of four?", " Two parents, two children 👨‍👩‍👧‍👦"),
    ("What is an engine for?", " It answers many prompts at once."),
    ("What does a KV cache keep?", " Keys and values of the tokens it has seen."),
    ("What is TTFT?", " The time to the first token."),
    ("Are you a large language model?", " No, a tiny one, but I know my 32 answers 😊"),
)

VOCABULARY = 2048
HIDDEN = 256
POSITIONS = 2048
MARGIN = 3.0  # logits; int4 weights in groups of 128 took 0.2 of it at most, in three seeds
MAX_STEPS = 240
# One line per turn would be another prompt than the one trained on: the question alone is it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


class Refused(Exception):
    """A failure whose text is meant for the user."""


def main() -> int:
    """Run the tool; the exit status, 1 when it refused."""
    args = _arguments()
    try:
        build(args.architecture, args.seed, args.out)
    except (Refused, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", choices=("qwen2", "llama", "gpt2"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def build(architecture: str, seed: int, out: Path) -> None:
    """Write the checkpoint of `architecture` below `out`; raise Refused when training fails."""
    offline()
    _say(f"training a byte-pair tokenizer with {VOCABULARY} tokens")
    tokenizer = make_tokenizer(architecture)
    model = make_model(architecture, seed, tokenizer)
    size = sum(weight.numel() for weight in model.parameters())
    _say(f"{architecture}: {size / 1e6:.1f} M parameters from seed {seed}")
    if architecture == "qwen2":
        steps, margin = train(model, tokenizer)
        summary = f"{len(QUESTIONS)} answers memorised in {steps} steps, margin {margin:.1f} logits"
    else:
        summary = "random weights: answers are meaningless, but always the same"
    save(model, tokenizer, architecture, out)
    (out / "summary.txt").write_text(f"{architecture}: {size / 1e6:.1f} M parameters\n{summary}\n")


def offline() -> None:
    """Keep Hugging Face's libraries off the network and quiet, and tokenizer training in order."""
    # With a busy neighbour, threads that spin at barriers made training six times slower.
    os.environ.update(OMP_WAIT_POLICY="PASSIVE")
    # Parallel BPE training and parallel hashing would both make the merge order depend on timing.
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.environ.update(HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")


def _say(line: str) -> None:
    print(line, flush=True)


def corpus() -> list[str]:
    """The top level of the standard library, then the questions and answers, often."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text("utf-8", "replace") for path in sorted(folder.glob("*.py"))]
    if not texts:
        raise Refused(f"no sources of the standard library in {folder}\nhint: use a full Python")
    return texts + [question + answer for question, answer in QUESTIONS] * 20


def make_tokenizer(architecture: str) -> Any:
    """A fast tokenizer in the manner of `architecture`: byte-level, or Metaspace for llama."""
    from transformers import PreTrainedTokenizerFast

    if architecture == "llama":
        core, names = metaspace(), {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    elif architecture == "gpt2":
        core = byte_level(["<|endoftext|>", "<|pad|>"])
        names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    else:
        core = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    positions = 1024 if architecture == "gpt2" else POSITIONS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=positions, clean_up_tokenization_spaces=False, **names
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def byte_level(specials: list[str]) -> Any:
    """Byte-level BPE (as GPT-2 and Qwen2 have): every byte is a token, nothing is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    return core


def metaspace() -> Any:
    """SentencePiece-like BPE (as Llama 2 has): a BOS, leading-space pieces, bytes as fallback."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    specials = ["<unk>", "<s>", "</s>"]
    raw = Tokenizer(models.BPE(unk_token=specials[0]))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    # A limit alone leaves out the rarest characters, ties in hash order: another set in every run.
    alphabet = ["▁", "\n", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 256,
        special_tokens=specials,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(), trainer)
    core = Tokenizer(with_byte_fallback(json.loads(raw.to_str())["model"], len(specials)))
    core.add_special_tokens(specials)
    core.pre_tokenizer = raw.pre_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return core


def with_byte_fallback(trained: dict[str, Any], specials: int) -> Any:
    """The trained BPE with the 256 byte tokens after its `specials` special tokens."""
    from tokenizers import models

    pieces = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    order = pieces[:specials] + [f"<0x{byte:02X}>" for byte in range(256)] + pieces[specials:]
    merges = [tuple(merge) for merge in trained["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(order)}
    return models.BPE(vocabulary, merges, unk_token=order[0], fuse_unk=True, byte_fallback=True)


def make_model(architecture: str, seed: int, tokenizer: Any) -> Any:
    """A randomly initialised causal model in fp32, with generation settings for greedy decoding."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    random.seed(seed)
    torch.manual_seed(seed)
    # Sums are ordered by thread count: a fixed one makes equal checkpoints on machines of one kind.
    torch.set_num_threads(2)
    model = AutoModelForCausalLM.from_config(_configuration(architecture, tokenizer))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def _configuration(architecture: str, tokenizer: Any) -> Any:
    from transformers import GPT2Config, LlamaConfig, Qwen2Config

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids.update(vocab_size=VOCABULARY, dtype="float32")
    if architecture == "gpt2":
        # A wide initialisation sets logits apart, so that rounding does not decide greedy choices.
        return GPT2Config(n_embd=HIDDEN, n_layer=2, n_head=4, n_positions=1024, initializer_range=0.1, **ids)
    # 640 and 256 are multiples of 128, the usual group of int4 weights.
    ids.update(hidden_size=HIDDEN, intermediate_size=640, max_position_embeddings=POSITIONS)
    ids.update(num_attention_heads=4, num_key_value_heads=2)
    if architecture == "llama":
        return LlamaConfig(num_hidden_layers=2, tie_word_embeddings=False, initializer_range=0.1, **ids)
    return Qwen2Config(num_hidden_layers=4, tie_word_embeddings=True, **ids)


def train(model: Any, tokenizer: Any) -> tuple[int, float]:
    """Train until every answer token leads by MARGIN logits; return (steps, least margin)."""
    import torch

    batches = training_batches(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.95), weight_decay=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    started, spoken = time.monotonic(), -9.0
    for step in range(MAX_STEPS + 1):
        optimizer.zero_grad()
        loss, margin = backward(model, batches)
        seconds = time.monotonic() - started
        if margin >= MARGIN or seconds - spoken > 2:
            spoken = seconds
            _say(f"step {step:3d}  loss {loss:8.5f}  least margin {margin:6.2f}  {seconds:4.0f} s")
        if margin >= MARGIN:
            return step, margin
        optimizer.step()
        warm_up.step()
    raise Refused(
        f"the answers were not memorised in {MAX_STEPS} steps\n"
        f"  least margin  {margin:.2f} logits, wanted {MARGIN}\n"
        "  hint: try another --seed"
    )


def training_batches(tokenizer: Any) -> list[tuple[Any, Any]]:
    """(ids, labels) int64 [batch, tokens], short rows apart from long ones; -100 is not scored."""
    import torch

    rows = []
    for question, answer in QUESTIONS:
        asked = tokenizer(question)["input_ids"]
        told = tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((asked + told, [-100] * len(asked) + told))
    rows.sort(key=lambda row: len(row[0]))
    batches = []
    for part in (rows[:12], rows[12:24], rows[24:]):
        width = len(part[-1][0])
        ids = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in part]
        labels = [labels + [-100] * (width - len(labels)) for _, labels in part]
        batches.append((torch.tensor(ids), torch.tensor(labels)))
    return batches


def backward(model: Any, batches: list[tuple[Any, Any]]) -> tuple[float, float]:
    """Accumulate gradients over all answers; return (mean loss, least margin in logits).

    With every margin positive under teacher forcing, greedy decoding yields every answer: each
    prefix it sees is then one of those scored here.
    """
    import torch

    scored = sum(int((labels != -100).sum()) for _, labels in batches)
    total, margin = 0.0, float("inf")
    for ids, labels in batches:
        keep = labels[:, 1:] != -100
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1][keep]
        target = labels[:, 1:][keep]
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum") / scored
        loss.backward()
        total += loss.item()
        margin = min(margin, least_margin(logits.detach(), target))
    return total, margin


def least_margin(logits: Any, target: Any) -> float:
    """By how much the wanted token leads the best other one: logits [n, vocabulary], target [n]."""
    wanted = logits.gather(1, target[:, None])
    others = logits.scatter(1, target[:, None], float("-inf")).amax(1, keepdim=True)
    return float((wanted - others).min())


def save(model: Any, tokenizer: Any, architecture: str, out: Path) -> None:
    """Write weights, settings, tokenizer and (for qwen2) questions.jsonl below `out`."""
    model.save_pretrained(out)
    # A template inside tokenizer_config.json is read by every version of transformers.
    tokenizer.save_pretrained(out, save_jinja_files=False)
    settings = json.loads((out / "tokenizer_config.json").read_text("utf-8"))
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 4 knows no other name
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    if architecture == "qwen2":
        lines = (json.dumps({"text_input": q, "expected": a}, ensure_ascii=False) for q, a in QUESTIONS)
        (out / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
