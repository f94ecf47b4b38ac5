"""CUDA kernels on the host: compiled with g++ after `host.h`, and launched as strictly as on a GPU.

What gives garbage or a fault on a GPU raises an error with a message: an argument of another width than the kernel
declares, a host array, a pointer that is not aligned for the access, a grid or a block that is too large.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from gpucnn.testing.strict import DeviceArray

HEADER = Path(__file__).with_name("host.h")
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fvisibility=hidden", "-w")
MAX_THREADS, MAX_BLOCKS = 1024, (2**31 - 1, 65535, 65535)  # per block, and along a grid's axes
SCALARS = {
    "bool": np.bool_,
    "char": np.int8,
    "signed char": np.int8,
    "unsigned char": np.uint8,
    "short": np.int16,
    "unsigned short": np.uint16,
    "int": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "long": np.int64,
    "unsigned long": np.uint64,
    "long long": np.int64,
    "unsigned long long": np.uint64,
    "size_t": np.uint64,
    "_Float16": np.float16,
    "float": np.float32,
    "double": np.float64,
}
PYTHON_NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64}  # how CuPy passes them
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
BOUNDS = r"(?:__launch_bounds__\s*\([^()]*\)\s*)?"
KERNEL = re.compile(rf'extern\s*"C"\s*__global__\s+{BOUNDS}void\s+{BOUNDS}(\w+)\s*\(([^()]*)\)\s*\{{')
FUNCTION = re.compile(r"\b(?!if\b|for\b|while\b|switch\b)([A-Za-z_]\w*)\s*\([^()]*\)\s*(?:const\s*)?\{")
CALL = re.compile(r"\b([A-Za-z_]\w*)\s*(?:<[^<>;]*>\s*)?\(")
TYPEDEF = re.compile(r"\btypedef\s+([\w\s]+?)\s+(\w+)\s*;")


@cache
def why_not():
    """Return why kernels cannot be compiled for this host, or nothing where they can."""
    if shutil.which("g++") is None:
        return "there is no g++"
    sample = f'#include "{HEADER}"\n_Float16 half(_Float16 x) {{ return x / 2; }}\n'
    command = ["g++", *FLAGS, "-fsyntax-only", "-x", "c++", "-"]
    answer = subprocess.run(command, input=sample, capture_output=True, text=True)
    errors = [line for line in answer.stderr.splitlines() if "error" in line]
    return f"g++ cannot compile tests/host.h: {errors[:1]}" if answer.returncode else ""


@cache
def compile_for_host(code, options=()):
    """Compile kernels with NVRTC's options, of which only the macros (-D) mean something here."""
    macros = tuple(option for option in options if option.startswith("-D"))
    return HostModule(code, macros)


class HostModule:
    """Kernels of one source, compiled for the host."""

    def __init__(self, code, macros):
        text = _run("g++", *FLAGS, *macros, "-DGPUCNN_ON_HOST", "-E", "-P", "-x", "c++", "-", text=code)
        typedefs = {name: " ".join(type_.split()) for type_, name in TYPEDEF.findall(text)}
        self.kernels = {name: parse_parameters(parameters, typedefs) for name, parameters in KERNEL.findall(text)}
        self._width = int(dict(option.split("=", 1) for option in macros if "=" in option).get("-DWIDTH", 1))
        in_step = functions_with_a_barrier(text)
        wrappers = "".join(
            f'extern "C" __attribute__((visibility("default"))) const char* host_{name}(const unsigned* grid, '
            f"const unsigned* block, void** args) {{ return host::launch<{name}>(grid, block, args, "
            f"{'true' if name in in_step else 'false'}); }}\n"
            for name in self.kernels
        )
        program = f'{HEADER.read_text("utf-8")}\n#line 1 "kernels"\n{code}\n#line 1 "wrappers"\n{wrappers}'
        # PyDLL keeps Python's other threads waiting: shared memory and the fibers are there once
        self._library = ctypes.PyDLL(str(_build(program, macros)))

    def get_function(self, name):
        """Return a kernel, to be called as `kernel(grid, block, args)`."""
        if name not in self.kernels:
            raise ValueError(f"there is no kernel named {name!r}")
        function = getattr(self._library, f"host_{name}")
        function.restype = ctypes.c_char_p
        return HostKernel(name, self.kernels[name], function, self._width)


@dataclass(frozen=True)
class Parameter:
    """What a kernel declares: a number, or a pointer to some; `constant` where the kernel only reads there."""

    text: str
    dtype: np.dtype | None  # None: void
    pointer: bool
    constant: bool
    packed: bool  # points to `scalar_t`, so it may be read in packs of WIDTH elements


class HostKernel:
    """One kernel: checks its arguments, then runs on the host."""

    def __init__(self, name, parameters, function, width):
        self.name, self.parameters = name, parameters
        self._function, self._width = function, width

    def __call__(self, grid, block, args, shared_mem=0):
        self.bind(grid, block, args, shared_mem)()

    def bind(self, grid, block, args, shared_mem=0):
        """Check a launch and return it as a function, which keeps the arrays' memory but not the arrays."""
        grid, block = self._sides("grid", grid), self._sides("block", block)
        if any(side > most for side, most in zip(grid, MAX_BLOCKS, strict=True)):
            raise ValueError(f"{self.name}: the grid {grid} is larger than {MAX_BLOCKS}")
        if block[0] * block[1] * block[2] > MAX_THREADS:
            raise ValueError(f"{self.name}: the block {block} has more than {MAX_THREADS} threads")
        if shared_mem:
            raise ValueError(f"{self.name}: shared memory given at launch is not simulated")
        if len(args) != len(self.parameters):
            expected = ", ".join(parameter.text for parameter in self.parameters)
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments ({expected}), got {len(args)}")
        cells = (ctypes.c_uint64 * max(1, len(args)))()
        for i, (parameter, argument) in enumerate(zip(self.parameters, args, strict=True)):
            cells[i] = self._pointer(parameter, argument) if parameter.pointer else self._number(parameter, argument)
        start = ctypes.addressof(cells)
        places = (ctypes.c_void_p * max(1, len(args)))(*(start + 8 * i for i in range(len(args))))
        sides = (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)
        referenced = cells, [argument._data for argument in args if isinstance(argument, DeviceArray)]

        def launch(referenced=referenced):
            wrong = self._function(*sides, places)
            if wrong is not None:
                raise RuntimeError(f"{self.name}: {wrong.decode()}")

        return launch

    def written(self, args):
        """Return those of the arguments that the kernel may write to."""
        pairs = zip(self.parameters, args, strict=False)
        return [a for parameter, a in pairs if isinstance(a, DeviceArray) and not parameter.constant]

    def _sides(self, what, sides):
        whole = isinstance(sides, tuple) and all(isinstance(side, int | np.integer) for side in sides)
        if not whole or not 1 <= len(sides) <= 3:
            raise TypeError(f"{self.name}: the {what} must be a tuple of 1 to 3 whole numbers, got {sides!r}")
        sides = (*(int(side) for side in sides), 1, 1)[:3]
        if min(sides) < 1:
            raise ValueError(f"{self.name}: the {what} {sides} is empty")
        return sides

    def _refuse(self, parameter, received):
        return TypeError(f"{self.name}: parameter `{parameter.text}` got {received}")

    def _pointer(self, parameter, argument):
        """Return the address that an argument stands for, as CuPy would pass it."""
        if isinstance(argument, np.integer) and argument.itemsize == 8 and argument == 0:
            return 0
        if not isinstance(argument, DeviceArray):
            raise self._refuse(parameter, f"a {type(argument).__name__}, not an array on the device")
        array = argument._data
        if parameter.dtype not in (None, array.dtype):
            raise self._refuse(parameter, f"an array of {array.dtype}, not of {parameter.dtype}")
        if not array.flags.c_contiguous:
            raise self._refuse(parameter, f"an array of shape {array.shape} that is not contiguous")
        address = array.ctypes.data
        step = array.itemsize * (self._width if parameter.packed else 1)
        if array.size and address % step:
            raise ValueError(
                f"{self.name}: parameter `{parameter.text}` got the address {address:#x}, "
                f"which is not a multiple of {step} bytes: a misaligned address"
            )
        return address

    def _number(self, parameter, argument):
        """Return the bits of a number, which must have the very type that the kernel declares."""
        if type(argument) in PYTHON_NUMBERS:
            argument = PYTHON_NUMBERS[type(argument)](argument)
        if not isinstance(argument, np.generic):
            raise self._refuse(parameter, f"a {type(argument).__name__}, not a number of {parameter.dtype}")
        if argument.dtype != parameter.dtype:
            raise self._refuse(parameter, f"{argument!r}, not a number of {parameter.dtype}")
        return int.from_bytes(argument.tobytes(), "little")


def parse_parameters(text, typedefs):
    """Read what stands between a kernel's parentheses."""
    declarations = [" ".join(part.split()) for part in text.split(",") if part.strip() not in ("", "void")]
    return tuple(_parse_parameter(declaration, typedefs) for declaration in declarations)


def _parse_parameter(text, typedefs):
    words = [word for word in IDENTIFIER.findall(text) if word not in ("__restrict__", "__restrict", "volatile")]
    pointer = "*" in text
    constant = not pointer or "const" in IDENTIFIER.findall(text.partition("*")[0])
    declared = " ".join(word for word in words[:-1] if word != "const")  # the last word is the parameter's name
    type_ = declared
    while type_ in typedefs:
        type_ = typedefs[type_]
    if text.count("*") > 1 or (type_ not in SCALARS and not (pointer and type_ == "void")):
        raise ValueError(f"a kernel's parameter `{text}` is of no type that tests/host_kernels.py knows")
    dtype = None if type_ == "void" else np.dtype(SCALARS[type_])
    return Parameter(text, dtype, pointer, constant, packed=pointer and declared == "scalar_t")


def functions_with_a_barrier(text):
    """Return the names of all functions that call __syncthreads, themselves or through others."""
    calls = {}
    for match in FUNCTION.finditer(text):
        calls.setdefault(match[1], set()).update(CALL.findall(_body(text, match.end())))
    found, before = {"__syncthreads"}, 0
    while len(found) > before:
        before = len(found)
        found |= {name for name, called in calls.items() if called & found}
    return found


def _body(text, start):
    """Return the text from behind an opening brace to the brace that closes it."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()]
    raise ValueError("a brace is not closed")


def _run(*command, text):
    answer = subprocess.run(command, input=text, capture_output=True, text=True)
    if answer.returncode:
        raise RuntimeError(f"g++ refuses the kernels:\n{answer.stderr}")
    return answer.stdout


def _build(program, macros):
    """Return the library of a program: built once per machine, under a name that is a hash of its source."""
    version = _run("g++", "--version", text="")
    key = hashlib.sha256("\0".join((version, *FLAGS, *macros, program)).encode()).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"gpucnn-host-kernels-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    if not library.exists():  # two processes may build at once: each under a different name
        with tempfile.TemporaryDirectory(dir=folder) as own:
            built = Path(own) / library.name
            _run("g++", *FLAGS, *macros, "-shared", "-fPIC", "-x", "c++", "-", "-o", str(built), text=program)
            os.replace(built, library)
    return library
