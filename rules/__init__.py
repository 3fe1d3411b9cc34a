"""The map of this folder: a module imports only from rows above its own (tests/test_house.py enforces it).

The left column, WHAT, is a pure function from text to a graph of actions. The right column, HOW, runs one action
and knows nothing of models. They share only the words in the first rows and meet in `tasks`.
"""

WORDS: tuple[tuple[str, ...], ...] = (
    ("errors", "digest"),
    ("action", "rule"),
)
WHAT: tuple[tuple[str, ...], ...] = (
    ("cluster", "gates", "loads", "locked", "pins", "release"),
    ("source", "spec", "verdicts"),
    ("taken",),
    ("flags", "launcher", "memory", "variant"),
    ("steps",),
    ("manifests",),
    ("case", "translate"),
    (
        "checks",
        "checks.build",
        "checks.calibration",
        "checks.memory",
        "checks.options",
        "checks.precision",
        "checks.serving",
    ),
    ("quantizer",),
    ("backends", "backends.openvino", "backends.trtllm"),
    ("backend",),
    ("checks.entry",),
    ("checks.cluster", "checks.evaluation", "checks.prompts", "checks.shapes"),
    ("check",),
    ("plan",),
)
HOW: tuple[tuple[str, ...], ...] = (
    ("tree", "lock", "gpu", "git", "sign", "remotes", "runners", "runners.leash"),
    ("remotes.credentials", "remotes.wire", "runners.local"),
    ("hubs", "remotes.http", "remotes.objects", "runners.docker"),
    ("hubs.bucket", "hubs.huggingface", "hubs.modelscope"),
    ("store", "artifacts", "workbench"),
    ("cache", "pinned"),
    ("executor", "freshness", "host", "upkeep"),
    ("outlook",),
    ("picture",),
)
DOIT: tuple[tuple[str, ...], ...] = (
    ("workspace", "report", "state", "built", "placement"),
    ("index", "preflight", "server", "envelope", "findings"),
    ("serving",),
    ("bench", "sweep", "choosing", "evaluation", "tables"),
    ("tasks", "page"),
    ("commands",),
    ("commands.affected", "commands.help", "commands.lock", "commands.plan", "commands.render"),
    ("commands.check", "commands.run", "commands.schema", "commands.serve", "commands.stop"),
    ("commands.bench", "commands.cache", "commands.eval", "commands.recommend", "commands.report", "commands.why"),
)

ROWS: tuple[tuple[str, ...], ...] = (*WORDS, *WHAT, *HOW, *DOIT)
