"""CuPy without a GPU: the part of it that the CuPy backend uses, over NumPy, with a GPU's strictness.

Arrays refuse to meet host arrays, reads are counted, fresh memory holds garbage, kernels are compiled for the host and
may not write outside their arrays, cuBLAS sees bare addresses, and captured operations wait for the graph's launch.
What cannot be simulated is speed, and a GPU's order of things: here every operation is done when the call returns.
"""

import builtins
import contextlib
import ctypes
import functools
import importlib
import importlib.machinery
import importlib.resources
import operator
import sys
import threading
import time
import types
import weakref

import numpy as np
import scipy.special

from gpucnn.testing.strict import DeviceArray, HostDeviceMixError, StrictModule
from tests.host_kernels import compile_for_host

ALIGNMENT = 512  # bytes, as CuPy's memory pool gives it
TOTAL_MEMORY = 2**34
MEMORY_ALLOCATION = 2  # cudaError_t
PACKAGE = "gpucnn.backends.cupy"
PRODUCTS = {"matmul", "imatmul", "dot", "vdot", "inner", "tensordot", "einsum"}  # CuPy does them with its own cuBLAS
WAITING = {"nonzero", "flatnonzero", "argwhere", "unique", "allclose", "array_equal"}  # their results' shape is read
OF_BOOLEANS = {"sum", "any", "all", "count_nonzero"}
READING = {"item", "tolist", "tobytes"}


class OutOfMemoryError(MemoryError):
    """An allocation that the simulated GPU has no memory for."""


class CUDARuntimeError(RuntimeError):
    """An error code of the CUDA runtime."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


class IllegalAddress(RuntimeError):
    """An access outside of the arrays that are alive."""


# --- memory -------------------------------------------------------------------------------------


# Signalling NaNs: what is computed from one and written back is another, so that it is found.
SIGNALS = {
    np.float16: (np.uint16, 0xFDFF),
    np.float32: (np.uint32, 0xFFBFFFFF),
    np.float64: (np.uint64, 2**64 - 2**51 - 1),
}
GUARDS = {np.dtype(kind): bits(signal) for kind, (bits, signal) in SIGNALS.items()}


class Memory(np.ndarray):
    """The bytes of one allocation; every array on the device is a view of one, by its chain of bases.

    On both sides lie guards, so that writing outside of it is found; floats there are NaN, so that reading there shows.
    """

    @classmethod
    def allocate(cls, length, pool, dtype):
        memory = cls(-(-length // ALIGNMENT) * ALIGNMENT + 3 * ALIGNMENT, np.uint8)  # owns its bytes: no base beyond it
        start = memory.ctypes.data
        memory.offset = -start % ALIGNMENT + ALIGNMENT
        memory.address, memory.length = start + memory.offset, length
        signal = GUARDS.get(dtype, np.uint8(0xA5))
        memory.guard = np.full(ALIGNMENT // signal.itemsize, signal).view(np.uint8)
        memory._set_guards()
        memory.garbage = 0xFF if dtype.kind == "f" else 0xA5  # NaN in every float type
        memory.pool, memory.simulation, memory.gpu = weakref.ref(pool), pool.simulation, pool.simulation.device
        memory.holders = 0  # arrays and pointers of the program, not those of a captured graph
        memory.released = False  # handed back by its pool
        return memory

    def array(self, shape, dtype, offset=0, strides=None, order="C"):
        """Return an array that lies in the memory."""
        return np.ndarray(shape, dtype, buffer=self, offset=self.offset + offset, strides=strides, order=order)

    def payload(self):
        """Return the bytes between the guards."""
        return self.array(self.length, np.uint8)

    def scramble(self):
        """Fill with garbage."""
        self.payload().fill(self.garbage)

    def _guards(self):
        end = self.offset + self.length
        whole = self.view(np.ndarray)
        return whole[self.offset - ALIGNMENT : self.offset], whole[end : end + ALIGNMENT]

    def _set_guards(self):
        for place in self._guards():
            place[...] = self.guard

    def is_overrun(self):
        """Return whether something was written outside the memory, and reset that."""
        found = any((place != self.guard).any() for place in self._guards())
        if found:
            self._set_guards()
        return found

    def hold(self):
        """Count an array or a pointer of the program."""
        self.holders += 1
        if self.holders == 1 and self.pool() is not None:
            self.pool().count(self.length, self.gpu)

    def let_go(self):
        """Count one less; where none is left the bytes are the pool's again."""
        self.holders -= 1
        if self.holders == 0 and self.pool() is not None:
            self.pool().count(-self.length, self.gpu)
        elif self.holders == 0:
            self.simulation.reserve(-self.length, self.gpu)

    def is_lost(self):
        """Return whether the memory was reused on a GPU although a graph still uses it."""
        pool = self.pool()
        return self.holders == 0 and (pool is None or not pool.private or self.released)


def memory_of(array):
    """Return the memory that a NumPy array is a view of, or None where it is the host's."""
    while array is not None and not isinstance(array, Memory):
        array = getattr(array, "base", None)
    return array


class MemoryPointer:
    """An address in memory, with what keeps the memory alive."""

    def __init__(self, memory, offset=0):
        self.mem, self._offset = memory, offset
        memory.hold()

    def __del__(self):
        self.mem.let_go()

    @property
    def ptr(self):
        return self.mem.address + self._offset

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self._offset + offset)


class Reservation:
    """Bytes of a GPU that cudaMalloc gave, until they are freed or a pool has taken them."""

    def __init__(self, size):
        self.size, self.device = 0, self.simulation.device
        self.simulation.reserve(size, self.device)
        self.size = size

    def take(self):
        """Hand the bytes over."""
        size, self.size = self.size, 0
        return size

    def hold(self):
        """Nothing to count."""

    let_go = hold

    def __del__(self):
        self.simulation.reserve(-self.size, self.device)


class MemoryPool:
    """A memory pool; a graph may keep using the memory of its own pool, whether arrays refer to it or not.

    It keeps what arrays release, even when the pool itself goes, as CuPy 14's does: that memory is lost then. Where
    the GPU has no more, it frees what it keeps and tries again.
    """

    private = True

    def __init__(self, allocator=None):
        self._allocator = allocator or (lambda size: MemoryPointer(self.simulation.reservation(size)))
        self._lock = threading.RLock()
        self._used, self._total = {}, {}  # bytes by device

    def count(self, nbytes, device):
        """Take note of bytes that arrays hold now, or hold no more."""
        with self._lock:
            self._used[device] = self._used.get(device, 0) + nbytes

    def provide(self, size):
        """Make sure that memory for an array is available.

        Raises:
            OutOfMemoryError: the GPU has too little, even after freeing all unused memory.
        """
        for patience in (2, 1, 0):
            try:
                with self._lock:
                    missing = self.used_bytes() + size - self.total_bytes()
                    if missing > 0:
                        self._add(self._allocator(missing).mem.take())
                    return
            except CUDARuntimeError as error:
                if error.status != MEMORY_ALLOCATION:
                    raise
                if not patience:
                    used = self.used_bytes()
                    message = f"Out of memory allocating {size:,} bytes (allocated so far: {used:,} bytes)."
                    raise OutOfMemoryError(message) from None
                self.free_all_blocks()

    def _add(self, nbytes):
        device = self.simulation.device
        self._total[device] = self._total.get(device, 0) + nbytes

    def malloc(self, size):
        return MemoryPointer(self.simulation.allocate_bytes(size, self))

    def used_bytes(self):
        return self._used.get(self.simulation.device, 0)

    def total_bytes(self):
        return self._total.get(self.simulation.device, 0)

    def free_bytes(self):
        return self.total_bytes() - self.used_bytes()

    def free_all_blocks(self, stream=None):
        self.simulation.frees += 1
        with self._lock:
            unused = self.free_bytes()
            self._add(-unused)
        self.simulation.reserve(-unused, self.simulation.device)
        for memory in self.simulation.memories():
            if memory.pool() is self and memory.holders == 0 and memory.gpu == self.simulation.device:
                memory.released = True


# --- arrays -------------------------------------------------------------------------------------


class SimulatedArray(DeviceArray):
    """An array on the simulated GPU: always a view of registered memory, so it never turns into another one."""

    __slots__ = ("_memory",)

    def __deepcopy__(self, memo):
        return self.copy()

    simulation = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        shape = shape_of(shape)
        if memptr is None:
            data = self.simulation.allocate(shape, dtype, order)
        else:
            data = memptr.mem.array(shape, dtype, memptr.ptr - memptr.mem.address, strides, order)
        self._adopt(data)

    def _adopt(self, data):
        DeviceArray.__init__(self, data, self.simulation)
        self._memory = memory_of(data)
        self._memory.hold()

    def __del__(self):
        with contextlib.suppress(AttributeError):  # an array that could not be allocated
            self._memory.let_go()

    def __getattr__(self, name):
        if name.startswith("_") or name == "ctypes":
            raise AttributeError(name)
        value = getattr(self._data, name)
        if not callable(value):
            return self._owner.wrap(value)
        if name in READING:
            return functools.partial(self._read, value)
        return functools.partial(self._owner.function(getattr(np.ndarray, name)), self)

    def _read(self, function, *args):
        self._owner.read()
        return function(*args)

    def __getitem__(self, index):
        whole = index if isinstance(index, tuple) else (index,)
        if any(getattr(item, "dtype", "") == "bool" for item in whole):
            self._owner.refuse_in_capture("a mask as index, whose size is read")
        if not any(item is Ellipsis for item in whole):
            whole = (*whole, Ellipsis)  # a single element is a view too, where NumPy gives a number
        return self._owner.function(operator.getitem)(self, whole)

    def __setitem__(self, index, value):
        self._owner.function(operator.setitem)(self, index, value)

    def __bool__(self):
        return self._read(self._data.__bool__)

    def __float__(self):
        return self._read(self._data.__float__)

    def __int__(self):
        return self._read(self._data.__int__)

    def __repr__(self):
        return f"SimulatedArray({self._data!r})"

    @property
    def data(self):
        return MemoryPointer(self._memory, self._data.ctypes.data - self._memory.address)

    @property
    def device(self):
        return self._owner.cupy.cuda.Device(self._memory.gpu)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """Copy to the host."""
        self._owner.read()
        if out is None:
            return np.array(self._data, order=order)
        np.copyto(out, self._data)
        return out

    def set(self, host, stream=None):
        """Copy from the host."""
        if not isinstance(host, np.ndarray) or host.dtype != self.dtype or host.shape != self.shape:
            raise ValueError(f"set takes a host array of {self.dtype} and shape {self.shape}, got {host!r}")
        self._owner.refuse_in_capture("a copy from the host")
        np.copyto(self._data, host)


def _define_assignments():
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
        function = getattr(operator, f"i{name}")

        def assign(self, other, function=function):
            self._owner.function(function)(self, other)
            return self

        setattr(SimulatedArray, f"__i{name}__", assign)


_define_assignments()


def shape_of(shape):
    """Return a shape as a tuple, whatever way it was given."""
    return (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(side) for side in shape)


def arrays_in(value):
    """Return the NumPy arrays in nested tuples and lists, in order."""
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, tuple | list):
        return [array for item in value for array in arrays_in(item)]
    return []


# --- streams, and what they capture -------------------------------------------------------------


class Capture:
    """What a stream captures: the operations, and the memory they touch as it was before.

    Each operation is also computed when it is captured, so that the ones after it find shapes and plausible numbers;
    at the end everything it wrote is undone.
    """

    def __init__(self):
        self.operations, self.memories, self._before, self._fresh = [], {}, {}, set()

    def touch(self, arrays, written=True):
        """Note memory that an operation uses, before it runs, and how it was if that may write to it."""
        for array in arrays:
            memory = memory_of(array)
            self.memories[memory.address] = memory
            if written and memory.address not in self._fresh and memory.address not in self._before:
                self._before[memory.address] = memory.payload().copy()

    def note_fresh(self, memory):
        """Note memory that was allocated on the way."""
        self.memories[memory.address] = memory
        self._fresh.add(memory.address)

    def undo(self):
        """Make memory what it was, and garbage what is new."""
        for address, before in self._before.items():
            self.memories[address].payload()[...] = before
        for address in self._fresh:
            self.memories[address].scramble()


class Graph:
    """Captured operations, to be replayed."""

    def __init__(self, simulation, capture):
        self._simulation, self._operations = simulation, capture.operations
        self._memories = list(capture.memories.values())

    def launch(self, stream=None):
        """Run what was captured, with the numbers that Python passed then and the current contents of the arrays."""
        self._simulation.refuse_in_capture("a graph's launch")
        for memory in self._memories:
            if memory.is_lost():
                raise IllegalAddress(f"a graph uses {memory.length:,} bytes that went back to the memory pool")
        self._simulation.graph_launches += 1
        for operation in self._operations:
            operation()


class Stream:
    """A stream of work; here all work is done at once, so only captures tell streams apart."""

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=0):
        self.ptr, self.device_id = (0, -1) if null else (self.simulation.next_stream(), self.simulation.device)
        self.non_blocking, self.capture, self._outer = non_blocking, None, []

    def __enter__(self):
        if self.device_id not in (-1, self.simulation.device):
            raise RuntimeError(f"the stream belongs to device {self.device_id}, not to {self.simulation.device}")
        self._outer.append(self.simulation.stream)
        self.simulation.stream = self
        return self

    def __exit__(self, *_):
        self.simulation.stream = self._outer.pop()

    def use(self):
        self.simulation.stream = self
        return self

    def synchronize(self):
        if self.capture is not None:
            raise CUDARuntimeError("a stream cannot be waited for while it captures")

    def is_capturing(self):
        return self.capture is not None

    def record(self, event=None):
        event = event or self.simulation.cupy.cuda.Event()
        event.record(self)
        return event

    def wait_event(self, event):
        """Nothing to wait for: all work is done."""

    def begin_capture(self, mode=None):
        if self.ptr == 0 or not self.non_blocking:
            raise RuntimeError("only a separate stream, created with non_blocking=True, can capture")
        if self.capture is not None:
            raise RuntimeError("the stream captures already")
        self.capture = Capture()

    def end_capture(self):
        if self.capture is None:
            raise RuntimeError("the stream does not capture")
        capture, self.capture = self.capture, None
        capture.undo()
        return Graph(self.simulation, capture)


class Event:
    """A moment in a stream."""

    def __init__(self, *args, **kwargs):
        self.time = None

    def record(self, stream=None):
        self.time = time.perf_counter()

    def synchronize(self):
        self.simulation.refuse_in_capture("waiting for an event")

    @property
    def done(self):
        return True


class Device:
    """One of the GPUs; the context in which a thread works on it."""

    compute_capability = "90"

    def __init__(self, device=None):
        self.id = self.simulation.device if device is None else int(device)
        if not 0 <= self.id < self.simulation.devices:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal", 101)

    def use(self):
        self.simulation.device = self.id
        return self

    def __enter__(self):
        self.simulation.outer_devices.append(self.simulation.device)
        return self.use()

    def __exit__(self, *_):
        self.simulation.device = self.simulation.outer_devices.pop()

    def synchronize(self):
        self.simulation.refuse_in_capture("waiting for the device")

    @property
    def mem_info(self):
        return self.simulation.cupy.cuda.runtime.memGetInfo()


class RawModule:
    """Kernels of one source."""

    def __init__(self, *, code, options=(), backend="nvrtc", name_expressions=None, **kwargs):
        self._code, self._options = code, tuple(options)

    def get_function(self, name):
        kernel = compile_for_host(self._code, self._options).get_function(name)
        return functools.partial(self.simulation.launch, kernel)


# --- the simulation itself ----------------------------------------------------------------------


class Simulation:
    """Simulated GPUs with their `cupy`, and what tests can query.

    Arguments:
        limit    the largest allocation, in bytes, that there is memory for; None for any
        devices  how many GPUs there are

    `capacity` is the memory of each GPU, in bytes; `reserved` tells how much of it is taken, by device.

    Counters: `reads` to the host, `frees` of a pool, `launches` of each kernel from Python, `graph_launches`;
    `sums_of_booleans`, for which CuPy compiles a kernel with the headers of CUB, two seconds long. `ranges` lists the
    names of the NVTX ranges that were opened.
    """

    def __init__(self, limit=None, devices=1):
        self.devices, self.capacity = devices, TOTAL_MEMORY
        self.reserved, self._lock = dict.fromkeys(range(devices), 0), threading.RLock()
        self.limit, self.reads, self.frees, self.graph_launches = limit, 0, 0, 0
        self.launches, self.ranges, self._open_ranges = {}, [], []
        self.sums_of_booleans = 0
        self._live = weakref.WeakValueDictionary()  # memory by its address
        self._streams, self._local = 0, threading.local()
        self.ndarray = self._own(SimulatedArray, "ndarray")
        self._stream_class, self._pool_class = self._own(Stream), self._own(MemoryPool)
        self.reservation = self._own(Reservation)
        self._stream_class.null = self._stream_class(null=True)
        self._default_pool = self._pool_class()
        self._default_pool.private = False
        self.cublas = FakeCublas(self)
        self.cupy = self._make_cupy()

    def _own(self, kind, name=None):
        """Return a class whose objects know this simulation."""
        return type(name or kind.__name__, (kind,), {"simulation": self, "__slots__": ()})

    # --- devices

    @property
    def device(self):
        """The number of the GPU that this thread works on."""
        return getattr(self._local, "device", 0)

    @device.setter
    def device(self, device):
        self._local.device = device

    @property
    def outer_devices(self):
        """The GPUs that contexts of this thread go back to."""
        return vars(self._local).setdefault("outer_devices", [])

    def check_device(self, memories, what):
        """Refuse to compute with what lies on another GPU."""
        for memory in memories:
            if memory.gpu != self.device:
                raise ValueError(
                    f"{what}: The device where the array resides ({memory.gpu}) is different from the current "
                    f"device ({self.device}). Peer access is unavailable between these devices."
                )

    # --- memory

    def reserve(self, nbytes, device):
        """Take bytes of a GPU, or give them back."""
        with self._lock:
            if self.reserved[device] + nbytes > self.capacity and nbytes > 0:
                raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory", MEMORY_ALLOCATION)
            self.reserved[device] += nbytes

    def memories(self):
        """Return all memory that is in use."""
        return list(self._live.values())

    def allocate_bytes(self, nbytes, pool=None, dtype=np.uint8):
        pool = pool or self.pool
        pool.provide(nbytes)
        if self.limit is not None and nbytes > self.limit:
            used = pool.used_bytes()
            raise OutOfMemoryError(f"Out of memory allocating {nbytes:,} bytes (allocated so far: {used:,} bytes).")
        memory = Memory.allocate(nbytes, pool, np.dtype(dtype))
        self._live[memory.address] = memory
        if self.capturing():
            self.capturing().note_fresh(memory)
        return memory

    def allocate(self, shape, dtype, order="C"):
        """Return a NumPy array of garbage in new memory."""
        dtype = np.dtype(dtype)
        memory = self.allocate_bytes(int(np.prod(shape, dtype=object)) * dtype.itemsize, dtype=dtype)
        memory.scramble()
        return memory.array(shape, dtype, order=order)

    def find(self, address, nbytes):
        """Return the memory in which a range of addresses lies."""
        for memory in self.memories():
            if memory.address <= address and address + nbytes <= memory.address + memory.length:
                return memory
        raise IllegalAddress(f"{nbytes:,} bytes at {address:#x} do not lie in any array that is alive")

    @property
    def pool(self):
        return getattr(self._local, "pool", None) or self._default_pool

    @contextlib.contextmanager
    def using_allocator(self, allocator=None):
        before = self.pool
        self.set_allocator(allocator)
        try:
            yield
        finally:
            self._local.pool = before

    def set_allocator(self, allocator=None):
        self._local.pool = self._default_pool if allocator is None else allocator.__self__

    # --- streams

    @property
    def stream(self):
        return self._streams_of_thread.get(self.device, self._stream_class.null)

    @stream.setter
    def stream(self, stream):
        self._streams_of_thread[self.device] = stream

    @property
    def _streams_of_thread(self):
        return vars(self._local).setdefault("streams", {})

    def next_stream(self):
        self._streams += 1
        return 0x1000 * self._streams

    def capturing(self):
        """Return the capture under way, or None."""
        return self.stream.capture

    def refuse_in_capture(self, what):
        if self.capturing():
            raise RuntimeError(f"a stream that captures does not allow {what}")

    def read(self):
        """Count a read to the host, which waits for the stream."""
        self.refuse_in_capture("a read to the host")
        self.reads += 1

    # --- operations, as the owner of DeviceArray

    def adopt(self, data):
        """Return the device's array of a NumPy array in registered memory."""
        array = self.ndarray.__new__(self.ndarray)
        array._adopt(data)
        return array

    def wrap(self, value, fresh=None):
        """Turn results into arrays on the device; those in the host's memory move, and `fresh` gets the new places."""
        if isinstance(value, np.ndarray | np.generic):
            value = np.asarray(value)
            if memory_of(value) is None:
                like = value if value.flags.c_contiguous else value.copy("K")
                place = self.allocate(like.shape, like.dtype)
                if not like.flags.c_contiguous:
                    place = memory_of(place).array(like.shape, like.dtype, strides=like.strides)
                np.copyto(place, value)
                value = place
                if fresh is not None:
                    fresh.append(place)
            elif fresh is not None:
                fresh.append(None)
            return self.adopt(value)
        if isinstance(value, tuple | list) and any(isinstance(item, np.ndarray | np.generic) for item in value):
            return type(value)(self.wrap(item, fresh) for item in value)
        return value

    def unwrap(self, value):
        if isinstance(value, self.ndarray):
            return value._data
        if isinstance(value, np.ndarray | DeviceArray):
            raise HostDeviceMixError(
                f"a {type(value).__name__} of shape {value.shape} met an array of the simulated GPU"
            )
        if isinstance(value, tuple | list):
            return type(value)(self.unwrap(item) for item in value)
        return value

    def function(self, function):
        """Return a function of NumPy arrays as one of arrays on the device, which a capture includes."""
        name = getattr(function, "__name__", "")

        def call(*args, **kwargs):
            args = [self.unwrap(argument) for argument in args]
            kwargs = {name: self.unwrap(argument) for name, argument in kwargs.items()}
            operands = arrays_in([*args, *kwargs.values()])
            self.sums_of_booleans += name in OF_BOOLEANS and operands[0].dtype == bool

            def compute():
                with np.errstate(all="ignore"):  # a GPU warns of nothing
                    return function(*args, **kwargs)

            capture = self.capturing()
            if capture:
                if name in PRODUCTS | WAITING:
                    self.refuse_in_capture(name)
                capture.touch(operands)
            result, fresh = compute(), []
            wrapped = self.wrap(result, fresh)
            in_place = result is None or any(result is operand for operand in operands)
            if in_place or any(place is not None for place in fresh):
                self.check_device(map(memory_of, operands), name)
            if capture and (in_place or any(place is not None for place in fresh)):

                def replay():
                    again = compute()
                    again = again if isinstance(again, tuple | list) else [again]
                    for place, value in zip(fresh, again, strict=False):
                        if place is not None:
                            np.copyto(place, value)

                capture.operations.append(replay)
            return wrapped

        return call

    def launch(self, kernel, grid, block, args, *, shared_mem=0):
        """Launch a kernel."""
        run = kernel.bind(grid, block, args, shared_mem)
        arrays = [argument._data for argument in args if isinstance(argument, DeviceArray)]
        written = [argument._data for argument in kernel.written(args)]
        self.check_device(map(memory_of, arrays), kernel.name)

        def launch():
            run()
            for array in arrays:
                if memory_of(array).is_overrun():
                    raise IllegalAddress(f"{kernel.name} wrote outside an array of shape {array.shape}")

        self.launches[kernel.name] = self.launches.get(kernel.name, 0) + 1
        self.do(launch, arrays, written)

    def do(self, operation, read, written):
        """Do, and add to a capture, what writes to arrays that are there."""
        capture = self.capturing()
        if capture:
            capture.touch(read, written=False)
            capture.touch(written)
        operation()
        if capture:
            capture.operations.append(operation)

    # --- the functions that NumPy's namesakes are not enough for

    def asarray(self, array, dtype=None, order=None):
        if isinstance(array, self.ndarray):
            return array if dtype in (None, array.dtype) else array.astype(dtype)
        self.refuse_in_capture("a copy from the host")
        return self.wrap(np.array(array, dtype, order=order))

    def array(self, array, dtype=None, copy=True, order="K", **kwargs):
        if isinstance(array, self.ndarray):
            return self.function(np.array)(array, dtype=dtype, copy=copy or None, order=order)
        return self.asarray(array, dtype, order)

    def asnumpy(self, array, stream=None, order="C", out=None, blocking=True):
        if not isinstance(array, self.ndarray):
            raise HostDeviceMixError(f"asnumpy got a {type(array).__name__}, which is on the host already")
        return array.get(stream, order, out)

    def empty(self, shape, dtype=float, order="C"):
        return self.adopt(self.allocate(shape_of(shape), dtype, order))

    def full(self, shape, fill_value, dtype=None, order="C"):
        if dtype is None:
            dtype = fill_value.dtype if isinstance(fill_value, self.ndarray) else np.array(fill_value).dtype
        array = self.empty(shape, dtype, order)
        array.fill(fill_value)
        return array

    def zeros(self, shape, dtype=float, order="C"):
        return self.full(shape, 0, dtype, order)

    def ones(self, shape, dtype=float, order="C"):
        return self.full(shape, 1, dtype, order)

    def empty_like(self, prototype, dtype=None, order="K", subok=None, shape=None):
        prototype = self.unwrap(prototype)
        shape, dtype = prototype.shape if shape is None else shape_of(shape), np.dtype(dtype or prototype.dtype)
        data = self.allocate(shape, dtype)
        template = np.empty_like(prototype, dtype, order, shape=shape)
        return self.adopt(memory_of(data).array(shape, dtype, strides=template.strides))

    def full_like(self, prototype, fill_value, dtype=None, order="K", subok=None, shape=None):
        array = self.empty_like(prototype, dtype, order, shape=shape)
        array.fill(fill_value)
        return array

    def zeros_like(self, prototype, dtype=None, order="K", subok=None, shape=None):
        return self.full_like(prototype, 0, dtype, order, shape=shape)

    def ones_like(self, prototype, dtype=None, order="K", subok=None, shape=None):
        return self.full_like(prototype, 1, dtype, order, shape=shape)

    # --- modules

    def _make_cupy(self):
        cupy = StrictModule(self)
        for name in ("asarray", "array", "asnumpy", "ndarray", "empty", "full", "zeros", "ones"):
            setattr(cupy, name, getattr(self, name))
        for name in ("empty_like", "full_like", "zeros_like", "ones_like"):
            setattr(cupy, name, getattr(self, name))
        cupy.__version__ = "14.2.0 (simulated)"
        cupy.RawModule = self._own(RawModule)
        cupy.get_default_memory_pool = lambda: self._default_pool
        cupy.cuda = types.SimpleNamespace(
            Device=self._own(Device),
            Event=self._own(Event),
            Graph=Graph,
            Memory=self.reservation,
            MemoryPointer=MemoryPointer,
            MemoryPool=self._pool_class,
            Stream=self._stream_class,
            alloc=lambda size: self.pool.malloc(size),
            get_current_stream=lambda: self.stream,
            get_elapsed_time=lambda start, end: (end.time - start.time) * 1e3,
            is_available=lambda: True,
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError, MemoryPointer=MemoryPointer),
            nvtx=types.SimpleNamespace(RangePush=self._push_range, RangePop=self._pop_range),
            runtime=self._make_runtime(),
            set_allocator=self.set_allocator,
            using_allocator=self.using_allocator,
        )
        return cupy

    def _make_runtime(self):
        properties = {"name": b"simulated", "multiProcessorCount": 4, "totalGlobalMem": TOTAL_MEMORY, "major": 9}
        return types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            deviceSynchronize=lambda: self.refuse_in_capture("waiting for the device"),
            driverGetVersion=lambda: 13000,
            getDevice=lambda: self.device,
            getDeviceCount=lambda: self.devices,
            getDeviceProperties=lambda device: {**properties, "minor": 0, "warpSize": 32},
            memGetInfo=lambda: (self.capacity - self.reserved[self.device], self.capacity),
            runtimeGetVersion=lambda: 13000,
        )

    def _push_range(self, name, id_color=-1):
        self.ranges.append(name)
        self._open_ranges.append(name)

    def _pop_range(self):
        if not self._open_ranges:
            raise RuntimeError("no NVTX range is open")
        self._open_ranges.pop()

    def modules(self):
        """Return what `sys.modules` has to hold so that CuPy's imports find the simulation."""
        special = types.SimpleNamespace(erf=self.function(scipy.special.erf))
        scipy_ = types.SimpleNamespace(special=special)
        cupyx = types.SimpleNamespace(scipy=scipy_, empty_pinned=np.empty, zeros_pinned=np.zeros)
        cuda = self.cupy.cuda
        return {
            "cupy": self.cupy,
            "cupy.cuda": cuda,
            "cupy.cuda.memory": cuda.memory,
            "cupy.cuda.nvtx": cuda.nvtx,
            "cupy.cuda.runtime": cuda.runtime,
            "cupyx": cupyx,
            "cupyx.scipy": scipy_,
            "cupyx.scipy.special": special,
        }


# --- cuBLAS -------------------------------------------------------------------------------------

SUCCESS, NOT_INITIALIZED, INVALID_VALUE, WRONG_STREAM, INTERNAL_ERROR, NOT_SUPPORTED = 0, 1, 7, 13, 14, 15
TYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64), 2: np.dtype(np.float16)}
COMPUTE = {68: np.float32, 77: np.float32, 70: np.float64}  # cublasComputeType_t: 32F, 32F_FAST_TF32, 64F
PRODUCT_TYPES = {68: {(0, 0), (2, 2), (2, 0)}, 77: {(0, 0)}, 70: {(1, 1)}}  # of the factors and of the product


class FakeCublas:
    """cuBLAS as `ctypes` would show it: functions of handles and addresses that return a status."""

    def __init__(self, simulation):
        self._simulation, self._handles = simulation, {}

    def __getattr__(self, name):
        if not name.startswith("cublas"):
            raise AttributeError(name)
        function = LibraryFunction(name, getattr(self, f"_{name.removeprefix('cublas').removesuffix('_v2')}"))
        setattr(self, name, function)  # one object, as a library gives it, so that its types can be set
        return function

    def _Create(self, handle):
        number = 0xC0B1A5 + len(self._handles)
        owner = self._simulation.device, threading.get_ident()  # who has set its stream last
        self._handles[number] = types.SimpleNamespace(stream=0, workspace=None, mode=0, owner=owner)
        handle._obj.value = number
        return SUCCESS

    def _Destroy(self, handle):
        return NOT_INITIALIZED if self._handles.pop(plain(handle), None) is None else SUCCESS

    def _SetStream(self, handle, stream):
        state = self._handles[plain(handle)]
        state.stream, state.workspace = plain(stream), None  # cuBLAS takes the workspace away
        state.owner = state.owner[0], threading.get_ident()
        return SUCCESS

    def _SetWorkspace(self, handle, pointer, size):
        address, size = plain(pointer), plain(size)
        self._simulation.find(address, size)
        if address % 256:
            return INVALID_VALUE
        self._handles[plain(handle)].workspace = address, size
        return SUCCESS

    def _SetMathMode(self, handle, mode):
        self._handles[plain(handle)].mode = plain(mode)
        return SUCCESS

    def _GemmEx(self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, *how):
        state = self._handles.get(plain(handle))
        a_transposed, b_transposed, M, N, K = (plain(number) for number in (transa, transb, m, n, k))
        places, leads = (plain(A), plain(B), plain(C)), (plain(lda), plain(ldb), plain(ldc))
        kinds, (compute, _algorithm) = (plain(Atype), plain(Btype), plain(Ctype)), (plain(number) for number in how)
        shapes = (K, M) if a_transposed else (M, K), (N, K) if b_transposed else (K, N), (M, N)
        if state is None:
            return NOT_INITIALIZED
        if state.stream != self._simulation.stream.ptr:
            return WRONG_STREAM
        if state.owner != (self._simulation.device, threading.get_ident()):
            return INTERNAL_ERROR
        if compute not in COMPUTE or kinds[0] != kinds[1] or kinds[::2] not in PRODUCT_TYPES[compute]:
            return NOT_SUPPORTED
        if min(M, N, K) < 0 or not {a_transposed, b_transposed} <= {0, 1}:
            return INVALID_VALUE
        if any(lead < max(1, rows) for lead, (rows, _) in zip(leads, shapes, strict=True)):
            return INVALID_VALUE
        number = ctypes.c_double if COMPUTE[compute] == np.float64 else ctypes.c_float
        factor, scale = pointed_to(alpha, number), pointed_to(beta, number)
        if state.workspace is not None:
            self._simulation.find(*state.workspace)
        if M == 0 or N == 0:
            return SUCCESS
        a, b, c = (self._matrix(*matrix) for matrix in zip(places, kinds, leads, shapes, strict=True))

        def multiply():
            with np.errstate(all="ignore"):
                left, right = (matrix.astype(COMPUTE[compute]) for matrix in (a, b))
                product = factor * ((left.T if a_transposed else left) @ (right.T if b_transposed else right))
                c[...] = product if scale == 0 else product + scale * c.astype(COMPUTE[compute])

        self._simulation.do(multiply, [a, b], [c])
        return SUCCESS

    def _matrix(self, address, kind, lead, shape):
        """Return the matrix at an address, whose columns lie `lead` elements apart."""
        rows, columns = shape
        dtype = TYPES[kind]
        if 0 in shape:
            return Memory.allocate(0, self._simulation.pool, dtype).array(shape, dtype)
        memory = self._simulation.find(address, ((columns - 1) * lead + rows) * dtype.itemsize)
        self._simulation.check_device([memory], "cublasGemmEx")
        if address % dtype.itemsize:
            raise IllegalAddress(f"the address {address:#x} is not aligned for {dtype}")
        strides = (dtype.itemsize, lead * dtype.itemsize)
        return memory.array(shape, dtype, address - memory.address, strides)


class LibraryFunction:
    """A function of a library, which converts its arguments where types were declared."""

    argtypes, restype = None, ctypes.c_int

    def __init__(self, name, function):
        self.name, self._function = name, function

    def __call__(self, *args):
        if self.argtypes is not None:
            if len(args) != len(self.argtypes):
                raise TypeError(f"{self.name} takes {len(self.argtypes)} arguments, got {len(args)}")
            for declared, argument in zip(self.argtypes, args, strict=True):
                declared.from_param(argument)  # raises TypeError
        return self._function(*args)


def plain(number):
    """Return a Python integer, from one or from a number of ctypes."""
    return number if isinstance(number, int) else int(number.value or 0)


def pointed_to(pointer, kind):
    """Return the number that a pointer leads to, which must be of the very type that is read there."""
    number = pointer.contents if hasattr(pointer, "contents") else pointer._obj
    if type(number) is not kind:
        raise TypeError(f"cuBLAS reads a {kind.__name__} where a {type(number).__name__} is given")
    return kind(number.value).value


# --- the backend over the simulation ------------------------------------------------------------


class Importer:
    """Imports the CuPy backend a second time, over a simulation, next to one that is there already.

    An import inside a function runs later, so each module gets an `__import__` of its own that finds the same modules.
    """

    def __init__(self, simulation):
        self._simulation, self._modules, self._depth = simulation, simulation.modules(), 0
        self._builtins = {**vars(builtins), "__import__": self._inside(builtins.__import__)}

    def load(self, name=PACKAGE):
        """Return the package of the backend, or one of its modules."""
        return self._inside(importlib.import_module)(name)

    def _inside(self, function):
        """Return a function that runs with the simulation's modules in place of the installed ones."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            if self._depth:
                return function(*args, **kwargs)
            before = {name: sys.modules.pop(name) for name in list(sys.modules) if self._is_ours(name)}
            parent, _, child = PACKAGE.rpartition(".")
            names = vars(importlib.import_module(parent)) if parent else {}  # where a package's modules are attributes
            attribute = names.get(child)
            sys.modules.update(self._modules)
            sys.meta_path.insert(0, self)
            self._depth += 1
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                sys.meta_path.remove(self)
                self._modules = {name: sys.modules.pop(name) for name in list(sys.modules) if self._is_ours(name)}
                sys.modules.update(before)
                names.pop(child, None)
                if attribute is not None:
                    names[child] = attribute

        return call

    @staticmethod
    def _is_ours(name):
        return name.split(".")[0] in ("cupy", "cupyx") or name == PACKAGE or name.startswith(f"{PACKAGE}.")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cupy", "cupyx"):
            raise ModuleNotFoundError(f"the simulation has no {name}", name=name)
        if not self._is_ours(name):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = Loader(name, spec.origin, self._prepare, self._finish)
        return spec

    def _prepare(self, namespace):
        namespace["__builtins__"] = self._builtins

    def _finish(self, namespace):
        if "open_library" in namespace:
            namespace["open_library"] = lambda *_: self._simulation.cublas
        for name, function in list(namespace.items()):
            if function in (importlib.resources.files, importlib.import_module):
                namespace[name] = self._inside(function)


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with something done to its names before and after its text has run."""

    def __init__(self, name, path, prepare, finish):
        super().__init__(name, path)
        self._prepare, self._finish = prepare, finish

    def exec_module(self, module):
        self._prepare(vars(module))
        super().exec_module(module)
        self._finish(vars(module))


def load_backend(simulation=None):
    """Return a class of backends: the CuPy backend's code over a simulation, which is its attribute `simulation`."""
    simulation = simulation or Simulation()
    package = Importer(simulation).load()

    class SimulatedCupyBackend(package.CupyBackend):
        """The CuPy backend without a GPU."""

        def __init__(self, device=0):
            super().__init__(device)
            self.name = f"cupy{f':{device}' if device else ''} (simulated)"

        @property
        def reads(self):
            """How often something was read to the host."""
            return self.simulation.reads

    SimulatedCupyBackend.simulation = simulation
    return SimulatedCupyBackend
