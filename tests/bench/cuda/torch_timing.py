"""How PyTorch is timed beside gpu_bench: as that times itself."""
import statistics
import sys

try:
    import torch
except ImportError:
    sys.exit("PyTorch is not installed here")


def numbers(defaults):
    """The lists that the command line gives, and defaults for those that it leaves out."""
    given = [[int(x) for x in text.split(",")] for text in sys.argv[1:]]
    return given + defaults[len(given):]


def name_machine():
    if not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU")
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}\n")


def median_us(rounds, queue):
    """The median over rounds of what `queue` queues, with other memory written in between."""
    other = torch.empty(192 << 20, device="cuda", dtype=torch.uint8)
    times = []
    for _ in range(rounds + 1):  # the first warms up
        other.fill_(1)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        queue()
        last.record()
        torch.cuda.synchronize()
        times.append(1000 * first.elapsed_time(last))
    return statistics.median(times[1:])
