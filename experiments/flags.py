"""Flags that experiments share: the same name, default and grammar everywhere."""

from absl import flags

PAPER = flags.DEFINE_string(
    "paper", None, "A paper's experiment (`parallax list papers`), or all: every paper on one page."
)
MODEL = flags.DEFINE_string(
    "model", None, "A paper's name: its model at full size. Or a folder in Hugging Face's layout "
    "(config.json, *.safetensors, tokenizer.json), or its config.json.",
)  # fmt: skip
STRATEGIES = flags.DEFINE_list(
    "strategies", None,
    "Comma-separated names (`parallax list strategies`) or strategy files (.json).",
)  # fmt: skip
STRATEGY = flags.DEFINE_string("strategy", None, "One strategy: a name or a strategy file (.json).")
MESH = flags.DEFINE_string(
    "mesh", None, "Mesh axes for named strategies: axis=size,... such as stage=2,tensor=8. "
    "Unset: each strategy fills the cluster.",
)  # fmt: skip
BATCH = flags.DEFINE_integer(
    "batch", None, "Sequences over all devices. Unset: the paper's; train: 16.", lower_bound=1
)
SEQ_LEN = flags.DEFINE_integer(
    "seq_len",
    None,
    "Tokens of a sequence. Unset: the paper's; train: 256; regimes: 2048.",
    lower_bound=1,
)
MICROBATCHES = flags.DEFINE_integer(
    "microbatches", None, "Pieces each device cuts its batch into; in training that is gradient "
    "accumulation. Unset: the paper's, lowered to what divides a device's sequences; train and "
    "deploy: 1.",
    lower_bound=1,
)  # fmt: skip
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float16", "bfloat16", "float32", "float64"], "Of parameters and activations."
)
COMPRESSION = flags.DEFINE_multi_string(
    "compression", None, "Formats that matrices are stored in: one, or attention's and the MLP's, "
    "such as int8 or int8,int8+2:4; none. DTYPE[/GROUP][+N:M] with DTYPE int8, w8a8, int4, "
    "float16. Another function than the dense model's, and named so. plan takes several and ranks "
    "them all.",
)  # fmt: skip


def compression() -> str | None:
    """The one that was given. ValueError if several were."""
    given = COMPRESSION.value or [None]
    if len(given) > 1:
        raise ValueError(
            f"--compression is given {len(given)} times; only plan ranks several. Give it once."
        )
    return given[0]


KERNELS = flags.DEFINE_enum(
    "kernels", None, ["mosaic", "cudnn"], "Compile and predict with these wherever they can: our "
    "kernels for Hopper GPUs, validated or not (mosaic; priced at 60 % of the rate of products: "
    "assumed), or cuDNN's attention of whole sequences (cudnn). Unset: what is validated, else "
    "XLA's. On CPUs XLA computes the same.",
)  # fmt: skip
CLUSTER = flags.DEFINE_string(
    "cluster", None, "What to compile for: `parallax list clusters`, or <gpu>_<nodes>x8."
)
LENSES = flags.DEFINE_list(
    "lenses", ["verify", "compile", "predict"], "Some of verify, compile, predict, measure."
)
BUDGET = flags.DEFINE_string(
    "budget", None, "Bytes of a device that its layers are to fit in: l2, smem, l2+smem, hbm, "
    "hbm+kv (with the batch's keys and values) or a number such as 50MB: which layers go where, by "
    "how much they do not fit, what would make them. Unset: all of these, for a layer-wise paper.",
)  # fmt: skip
PACKED = flags.DEFINE_bool("packed", False, "Pack several documents a sequence (segment ids).")
SMALL = flags.DEFINE_bool(
    "small", False, "A paper's model at the width of a laptop: what verify runs."
)
PHASE = flags.DEFINE_enum(
    "phase", "prefill", ["prefill", "decode", "train"],
    "What is compiled and predicted: a forward pass "
    "to last-position logits, a new token of every sequence after prompts of seq_len tokens, or a "
    "training step of AdamW with float32 parameters.",
)  # fmt: skip
REMAT = flags.DEFINE_enum(
    "remat", "microbatch", ["none", "microbatch", "layer"],
    "What a training step recomputes instead of keeping: more of it, less memory.",
)  # fmt: skip
TEXT = flags.DEFINE_string(
    "text", None, "UTF-8 file whose bytes are the tokens of verify and measure. Unset: Python's "
    "standard library.",
)  # fmt: skip
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed steps of measure.", lower_bound=1)
SWEEP = flags.DEFINE_string(
    "sweep", None, "Compile and predict along an axis (devices, seq_len or batch): axis:low..high "
    "doubles, axis:4k,10k lists; k = 1024, M = 1024 k. verify runs only if --lenses names it.",
)  # fmt: skip
OUT = flags.DEFINE_string(
    "out", "out", "Folder for what is written: the report as JSON and HTML; of plan also "
    "strategy.json; of claims claims.json and .md; of calibrate rates.json and measured.json.",
)  # fmt: skip
FROM_REPORT = flags.DEFINE_string(
    "from_report",
    None,
    "A report.json whose request runs again; other flags are ignored but --out.",
)
PROMPT = flags.DEFINE_multi_string(
    "prompt", None, "A text to continue; several times for a batch of any lengths."
)
PROMPTS = flags.DEFINE_string("prompts", None, "A UTF-8 file with a prompt in each line.")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 64, "Tokens to generate for each prompt, at most.", lower_bound=1
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "Logits are divided by it before a token is drawn; 0 is greedy."
)
TOP_K = flags.DEFINE_integer("top_k", None, "Draw among so many of the most likely tokens only.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Draw among the most likely tokens that together reach this probability."
)
SEED = flags.DEFINE_integer("seed", 0, "Of everything drawn: equal seeds, equal results.")
STOP_TOKENS = flags.DEFINE_list(
    "stop_tokens",
    None,
    "Token ids that end a text, separated by commas. Unset: the tokenizer's own.",
)
CACHE_LEN = flags.DEFINE_integer(
    "cache_len", None, "Tokens a sequence may have, prompt and new ones. Unset: what is asked for."
)
VIRTUAL = flags.DEFINE_bool(
    "virtual", False, "Run on virtual CPU devices, as many as the mesh needs (16 without a mesh)."
)
JSON = flags.DEFINE_string("json", None, "File for the results as JSON.")
DATA = flags.DEFINE_list(
    "data", None, "Files to train on, separated by commas: text, .npy (a row of integers) or .bin "
    "(uint16) tokens.",
)  # fmt: skip
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a training run. One with a checkpoint goes on from it."
)
STEPS = flags.DEFINE_integer(
    "steps", 100, "Training steps in all, those of earlier runs counted.", lower_bound=1
)
LEARNING_RATE = flags.DEFINE_float("learning_rate", 3e-4, "Of AdamW, at the end of the warmup.")
WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", 20, "Steps in which the learning rate rises from 0; a cosine takes it down to "
    "a tenth after that.", lower_bound=0,
)  # fmt: skip
WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", 0.1, "Of matrices and tables; norms and biases have none."
)
CLIP_NORM = flags.DEFINE_float(
    "clip_norm", 1.0, "Largest L2 norm of all gradients together; 0 is no clipping."
)
SAVE_EVERY = flags.DEFINE_integer(
    "save_every", 100, "Steps between checkpoints; the last step is saved too.", lower_bound=1
)
KEEP = flags.DEFINE_integer("keep", 3, "Newest checkpoints that stay.", lower_bound=1)
LOG_EVERY = flags.DEFINE_integer(
    "log_every", 10, "Steps between lines where there is no terminal.", lower_bound=1
)
PROMPT_LEN = flags.DEFINE_integer("prompt_len", None, "Tokens of a prompt.", lower_bound=1)
OUTPUT_LEN = flags.DEFINE_integer(
    "output_len", 128, "New tokens for each prompt; 1 plans a prefill alone.", lower_bound=1
)
OBJECTIVE = flags.DEFINE_enum(
    "objective", "tps", ["tps", "tpot", "energy"], "What is best: most output tokens a second over "
    "the whole batch, the least time per output token, or the least energy per output token.",
)  # fmt: skip
MAX_TPOT_S = flags.DEFINE_float(
    "max_tpot_s", None, "Longest time per output token, seconds; slower candidates are out."
)
COMPILE_TOP = flags.DEFINE_integer(
    "compile_top", 5, "So many of the best candidates are compiled and ranked again.", lower_bound=0
)
RATES = flags.DEFINE_string(
    "rates", None, "Constants of the GPU that `parallax calibrate` wrote. Unset: those shipped."
)
REGIMES = flags.DEFINE_bool(
    "regimes", False, "Also maps of which strategy wins over length and batch, width and devices, "
    "experts and skew.",
)  # fmt: skip
HLO = flags.DEFINE_string("hlo", None, "Text of a scheduled CUDA module; also without --hlo=.")
TRIPS = flags.DEFINE_list(
    "trips", None, "Executions of loops whose length depends on data: scope=count, by commas."
)
TRAIN_STEPS = flags.DEFINE_integer(
    "train_steps", 1500, "Steps of 1024 bytes that the small model is trained for.", lower_bound=1
)
TUNE_STEPS = flags.DEFINE_integer(
    "tune_steps", 80, "Steps more through each format; 0: formats are measured as trained only.",
    lower_bound=0,
)  # fmt: skip
RACE_STEPS = flags.DEFINE_integer(
    "race_steps", 300, "Steps of each run, dense and compressed from the start, to a common loss; "
    "0: no race.", lower_bound=0,
)  # fmt: skip
RACE_SEEDS = flags.DEFINE_integer(
    "race_seeds", 3, "Pairs of runs, each from other random weights.", lower_bound=0
)
BUDGET_SHARE = flags.DEFINE_float(
    "budget_share", 0.12, "Of the float16 bytes of the model's layers: the mildest mix of formats "
    "under it is searched.",
)  # fmt: skip
DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices in all, spares included. Unset: all, or with --virtual one a layer "
    "(16 at most) and the spares.", lower_bound=1,
)  # fmt: skip
SPARES = flags.DEFINE_integer(
    "spares", 0, "Of the devices, so many wait until another is lost.", lower_bound=0
)
DEVICE_BUDGET = flags.DEFINE_string(
    "device_budget", None, "Bytes of weights, keys, values that a device may hold: l2, smem, "
    "l2+smem (of an H100) or bytes such as 50MB. Unset: no limit.",
)  # fmt: skip
RULE = flags.DEFINE_enum(
    "rule", "optimal", ["optimal", "greedy"], "How layers are placed: the least slowest group, or "
    "the papers' rule, a device takes layers as long as they fit.",
)  # fmt: skip
LAYER_FORMATS = flags.DEFINE_multi_string(
    "layer_formats", None, "LAYERS=FORMAT or LAYERS=ATTENTION,MLP, such as 0-3=int8,int8+2:4; "
    "several times, later ones win.",
)  # fmt: skip
STRONGER = flags.DEFINE_string(
    "stronger", "int8+2:4", "Formats that --switches takes layers to: one, or attention's and the "
    "MLP's.",
)  # fmt: skip
LOSE = flags.DEFINE_list(
    "lose", None, "Numbers of devices to lose, one a run, separated by commas. Unset: --losses "
    "draws them.",
)  # fmt: skip
LOSSES = flags.DEFINE_integer(
    "losses", 0, "Runs that lose a device at a random moment.", lower_bound=0
)
SWITCHES = flags.DEFINE_integer(
    "switches", 0, "Switches of layers to --stronger and back while requests run; so many prepared "
    "on devices, and as many on the host.", lower_bound=0,
)  # fmt: skip
PRESSURE = flags.DEFINE_bool(
    "pressure", False, "Also a run whose growing keys and values outgrow a (modelled) cache half "
    "way: layers switch to --stronger by themselves.",
)  # fmt: skip
CLUSTERS = flags.DEFINE_list(
    "clusters", None, "Wirings, by commas: `parallax list clusters`. Unset: h100_2x8."
)
BATCHES = flags.DEFINE_list("batches", None, "Sequences, by commas. Unset: 1,4,16,64,256,1024.")
WIDTHS = flags.DEFINE_list(
    "widths", None, "Widths of the model, multiples of 1024, by commas. Unset: 1024,2048,4096,8192."
)
DEPTHS = flags.DEFINE_list("depths", None, "Layers of the model, by commas. Unset: 16,64.")
STORED = flags.DEFINE_list(
    "stored", None, "Formats of the weights, by commas: float16, int8, int8/int8+2:4 (of attention "
    "and MLP), int4, int4+2:4. Unset: float16, int8/int8+2:4.",
)  # fmt: skip
FULL = flags.DEFINE_bool("full", False, "Both wirings, all formats: minutes.")
PAIRS = flags.DEFINE_integer(
    "pairs", 100, "Pairs of runs; both strategies run once in each, in drawn order.", lower_bound=2
)
OPERATIONS = flags.DEFINE_list(
    "operations", None, "Kernels, by commas, as docs/kernels.md names them. Unset: all."
)
COMPILE_ONLY = flags.DEFINE_bool(
    "compile_only", False, "Compile what ships for the H100 with no GPU, and time nothing."
)
