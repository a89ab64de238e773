"""All limits on what reading an untrusted file may cost.

Each is far above what real files need. A file beyond one of them is refused, in one line, before
any of its content is used.
"""

from __future__ import annotations

MB = 2**20
NAME = 1_000  # characters of a tensor's name; real ones have up to 150
TENSORS = 200_000  # tensors of one file
HEADER_BYTES = 32 * MB  # of a safetensors file; 100,000 tensors take 12 MB
PICKLE_BYTES = 32 * MB  # of the structure in a torch file, without its tensors
# Steps of that structure: a tensor takes about 40; 200,000 steps take half a second. A file may
# have one more for each 100 of its bytes.
PICKLE_STEPS = 200_000
BYTES_A_STEP = 100
FUSED_ROWS = 2**18  # of a weight that holds several projections
TUPLE_SIZE = (
    1_000  # parts in parts of a tuple in it; torch.save needs 20. Hashing one costs as many steps
)
JSON_BYTES = 32 * MB  # a configuration or an index; that of DeepSeek-V3's 91,991 tensors has 9 MB
YAML_BYTES = 1 * MB
UNPACKED_RATIO = 100  # bytes of a compressed archive's arrays by bytes of its file
UNPACKED_FREE = 64 * MB  # below this the ratio is not checked: zeros compress to a thousandth
PATTERNS = 5_000  # regular expressions in a configuration; compiling each takes 0.1 ms
PATTERN = 4_000  # characters of one regular expression of a configuration
REPEATS = 1_000  # its counted repeats, such as {3}, multiplied: compiling it takes as much memory
PATTERN_SECONDS = 0.2  # one of them on one name: it takes microseconds
PATTERNS_SECONDS = 0.5  # all of them on all names, above 10 microseconds for each
LAYERS = 10_000  # of a model made by layer_replication
