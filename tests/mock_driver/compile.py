"""In NVRTC's place: compile CUDA kernels for the host, each with a function that runs it over a grid.

    python -m tests.mock_driver.compile FOLDER     reads FOLDER/text.cu and FOLDER/options, writes FOLDER/code

The "machine code" is the path of a library, which is kept. As on a GPU products are fused with sums, and numbers of
float that are too small to be normal are 0.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-mfma", "-ffp-contract=fast", "-fno-strict-aliasing", "-fvisibility=hidden", "-w")
WRAPPERS = """
#include <xmmintrin.h>
template <typename... Parameters>
struct Sizes {
    static constexpr int count = sizeof...(Parameters);
    static constexpr size_t sizes[sizeof...(Parameters) + 1] = {sizeof(Parameters)..., 0};
};
template <typename... Parameters>
Sizes<Parameters...> sizes_of(void (*)(Parameters...));
#define VISIBLE extern "C" __attribute__((visibility("default")))
#define WRAP(name, has_barrier)                                                              \\
    VISIBLE const int count_##name = decltype(sizes_of(name))::count;                        \\
    VISIBLE const size_t* const sizes_##name = decltype(sizes_of(name))::sizes;              \\
    VISIBLE const char* run_##name(const unsigned* grid, const unsigned* block, void** args) { \\
        const unsigned before = _mm_getcsr();                                                \\
        _mm_setcsr(before | 0x8040); /* what is denormal is 0 */                             \\
        const char* wrong = host::launch<name>(grid, block, args, has_barrier);              \\
        _mm_setcsr(before);                                                                  \\
        return wrong;                                                                        \\
    }
"""


def main(folder):
    """Compile what NVRTC was given, unless it was compiled before."""
    text, options = (folder / "text.cu").read_text("utf-8"), (folder / "options").read_text("utf-8").split()
    ours = "What all kernels share" in text
    header = HERE.parent / "host.h" if ours else HERE / "device.h"
    seen = [option for option in options if option.startswith(("-D", "-I"))]
    known = hashlib.sha256("\n".join([text, *seen, Path(__file__).read_text(), header.read_text()]).encode())
    library = Path(os.environ["MOCK_DRIVER"]) / "kernels" / f"{known.hexdigest()}.so"
    if not library.exists():
        _compile(text, seen, header, ours, library)
    (folder / "code").write_text(str(library))


def _compile(text, options, header, ours, library):
    from tests.host_kernels import KERNEL, functions_with_a_barrier  # takes longer than to find what is compiled

    macros = [option for option in options if option.startswith("-D")]
    expanded = _run("g++", *macros, "-DGPUCNN_ON_HOST", "-E", "-P", "-x", "c++", "-", text=text) if ours else text
    names = [name for name, _ in KERNEL.findall(expanded)]
    in_step = functions_with_a_barrier(expanded)
    if not ours and "__syncthreads" in text:  # of CuPy, in a macro
        in_step = names
    wrapped = "".join(f"WRAP({name}, {str(name in in_step).lower()})\n" for name in names)
    program = f'#include "{header}"\n#line 1 "kernels"\n{text}\n#line 1 "wrappers"\n{WRAPPERS}{wrapped}'
    includes = [*options, f"-I{os.environ['CUDA_PATH']}/include"]
    part = library.with_suffix(f".{os.getpid()}")
    _run("g++", *FLAGS, *includes, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(part), text=program)
    part.rename(library)


def _run(*command, text):
    answer = subprocess.run(command, input=text, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stderr)
    return answer.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
