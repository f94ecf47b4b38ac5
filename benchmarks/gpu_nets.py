"""The two sides of `benchmarks.gpu`: the same convolutions and training steps by gpucnn and by PyTorch.

Both sides answer the same questions: how long do calls take on the GPU (`clock`), several calls captured
as one CUDA graph (`captured`), the passes of a convolution (`convolution`), a training step (`step`), and
the memory that steps need (`memory`). A step picks images from a small data set of bytes on the GPU, makes numbers
0 … 1 of them, trains, and adds loss and right answers to totals that stay on the GPU, as `fit` does.

Networks are those of `benchmarks.nets`, and Page's ResNet-9 without its factor on the logits.
"""

import functools
import gc
import itertools
import time
import warnings

import numpy as np

from benchmarks import nets
from gpucnn import Model, optimizers, rng
from gpucnn import layers as L
from gpucnn.backends import Window
from gpucnn.training.loop import to_device
from gpucnn.training.steps import CapturedSteps, make_step_runner

PASSES = {"forward": 1, "weight gradient": 1, "input gradient": 1, "all": 3}  # and how many products each is
BATCHES = 4  # in the data set that steps go round in
CLASSES = 10
RATE, MOMENTUM, DECAY = 0.01, 0.9, 5e-4
WARM_UP = 3  # calls: gpucnn runs eagerly, captures and replays; cuDNN tries its algorithms in the first


def image_of(net):
    """Return the shape of a network's images."""
    return (32, 32, 3) if net == "resnet9" else nets.image_of(net)


def data(net, batch):
    """Return random images, bytes, and labels: some batches of them."""
    generator, count = np.random.default_rng(0), BATCHES * batch
    return generator.integers(0, 256, (count, *image_of(net)), np.uint8), generator.integers(0, CLASSES, count)


def resnet9_layers(side=32, width=64):
    """Return the layers of Page's ResNet-9 for images of a side, up to the logits; `width` is that of the first."""

    def conv_bn(filters):
        return [L.Conv2D(filters, 3, padding="same", use_bias=False), L.BatchNorm(), L.ReLU()]

    return [
        *conv_bn(width),
        *(*conv_bn(2 * width), L.MaxPool2D(), L.Residual([*conv_bn(2 * width), *conv_bn(2 * width)])),
        *(*conv_bn(4 * width), L.MaxPool2D()),
        *(*conv_bn(8 * width), L.MaxPool2D(), L.Residual([*conv_bn(8 * width), *conv_bn(8 * width)])),
        *(L.MaxPool2D(side // 8), L.Flatten(), L.Dense(CLASSES, use_bias=False)),
    ]


def gpucnn_net(net, backend, precision, jit, width=64):
    """Return a compiled gpucnn model that computes in "fp32", "tf32" or "fp16"."""
    if net == "resnet9":
        model = Model([*resnet9_layers(width=width), L.Softmax()], image_of(net), backend=backend)
    else:
        model = nets.gpucnn_model(net, backend)
    model.to(backend, "float16" if precision == "fp16" else "float32")
    model.allow_tf32 = precision == "tf32"
    optimizer = optimizers.SGD(RATE, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    return model.compile(optimizer, "categorical_crossentropy", jit=jit)


class Ours:
    """gpucnn on a CuPy backend."""

    def __init__(self, backend):
        self.backend = backend

    def clock(self, call, count):
        """Return the seconds that `count` calls take on the GPU, from the start of the first to the end of the last."""
        cuda = self.backend.xp.cuda
        started, ended = cuda.Event(), cuda.Event()
        started.record()
        for _ in range(count):
            call()
        ended.record()
        ended.synchronize()
        return cuda.get_elapsed_time(started, ended) / 1e3

    def captured(self, call, count):
        """Return a function that runs `count` calls as one CUDA graph."""

        def several():
            for _ in range(count):
                call()

        tracer = self.backend.tracer()
        with tracer.warm_up():
            several()
        return tracer.capture(several)[1]

    def convolution(self, images, channels, side, precision):
        """Return the passes of a 3×3 convolution, as many filters as channels, by name."""
        backend, generator = self.backend, np.random.default_rng(0)
        dtype = "float16" if precision == "fp16" else "float32"
        shape, window = (images, side, side, channels), Window((3, 3), padding=((1, 1), (1, 1)))
        x, dy = (backend.from_host(generator.standard_normal(shape, np.float32).astype(dtype)) for _ in range(2))
        weight = generator.standard_normal((3, 3, channels, channels), np.float32) / np.float32(3 * channels**0.5)
        weight = backend.from_host(weight)  # parameters are float32 in any case

        def forward():
            backend.conv2d(x, weight, None, window)

        def weight_gradient():
            backend.conv2d_parameter_gradients(x, dy, window, 1, bias=False)

        def input_gradient():
            backend.conv2d_input_gradient(dy, weight, (side, side), window)

        def whole():
            forward()
            weight_gradient()
            input_gradient()

        def within(function):
            def call():
                with backend.execution_context(sharded=False, allow_tf32=precision == "tf32"):
                    function()

            return call

        functions = forward, weight_gradient, input_gradient, whole
        return {name: within(function) for name, function in zip(PASSES, functions, strict=True)}

    def step(self, net, batch, precision, captured, width=64):
        """Return a function that runs the next training step: eagerly, or captured and replayed."""
        model = gpucnn_net(net, self.backend, precision, captured, width)
        steps = make_step_runner(model, *to_device(model, data(net, batch)), batch)
        if isinstance(steps, CapturedSteps) != captured:
            raise RuntimeError(f"asked for captured={captured}, gpucnn chose {type(steps).__name__}")
        steps.begin_epoch(rng.epoch_order(0, 0, BATCHES * batch))
        parts = itertools.cycle([slice(start, start + batch) for start in range(0, BATCHES * batch, batch)])
        return lambda: steps.run(next(parts), RATE)

    def memory(self, make):
        """Return the MB that steps take: of the whole GPU, and of CuPy's default pool, a captured step's own left out.

        Both are the maximum that was ever needed, since pools keep what arrays release.
        """
        runtime = self.backend.xp.cuda.runtime
        self.tidy()
        free = runtime.memGetInfo()[0]
        step = make()
        for _ in range(2 * WARM_UP):
            step()
        self.backend.synchronize()
        pool = self.backend.xp.get_default_memory_pool()
        return {"gpu_mb": (free - runtime.memGetInfo()[0]) / 1e6, "pool_mb": pool.total_bytes() / 1e6}

    def tidy(self):
        """Give memory back that nothing uses."""
        gc.collect()  # a graph and what its step refers to may be a cycle
        self.backend.xp.get_default_memory_pool().free_all_blocks()


class Theirs:
    """PyTorch, channels last, on a GPU; on the CPU as well, where nothing can be captured."""

    def __init__(self, torch, device="cuda"):
        self.torch, self.device = torch, device
        torch.backends.cudnn.benchmark = True

    def set_precision(self, precision):
        """Let float32 products round their factors to 10 bits or not; a setting of the whole process."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer names exist, which do not mix with what others have set
            self.torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            self.torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def clock(self, call, count):
        """Return the seconds that `count` calls take on the GPU, from the start of the first to the end of the last."""
        if self.device == "cpu":
            started = time.perf_counter()
            for _ in range(count):
                call()
            return time.perf_counter() - started
        started, ended = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        for _ in range(count):
            call()
        ended.record()
        ended.synchronize()
        return started.elapsed_time(ended) / 1e3

    def captured(self, call, count):
        """Return a function that runs `count` calls as one CUDA graph."""
        if self.device == "cpu":
            raise RuntimeError("a CPU captures no CUDA graph")
        cuda = self.torch.cuda
        stream = cuda.Stream()  # what is captured must be warmed up outside the default stream
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        cuda.current_stream().wait_stream(stream)
        gc.collect()  # memory that is freed during a capture would end it
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            for _ in range(count):
                call()
        return graph.replay

    def convolution(self, images, channels, side, precision):
        """Return the passes of a 3×3 convolution, as many filters as channels, by name."""
        torch = self.torch
        dtype = torch.float16 if precision == "fp16" else torch.float32

        def normal(*shape):
            made = torch.randn(shape, device=self.device).to(dtype)
            return made.contiguous(memory_format=torch.channels_last)

        x, dy = normal(images, channels, side, side), normal(images, channels, side, side)
        weight = normal(channels, channels, 3, 3) / (3 * channels**0.5)

        def forward():
            with torch.no_grad():
                torch.nn.functional.conv2d(x, weight, padding=1)

        def gradients(of_input, of_weight):
            mask, backward = [of_input, of_weight, False], torch.ops.aten.convolution_backward
            with torch.no_grad():
                backward(dy, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)

        def whole():
            forward()
            gradients(True, True)

        passes = forward, functools.partial(gradients, False, True), functools.partial(gradients, True, False), whole
        return dict(zip(PASSES, passes, strict=True))

    def net(self, net, width=64):
        """Return a network as a module on the CPU."""
        torch = self.torch
        if net != "resnet9":
            return nets.torch_model(net)
        nn = torch.nn

        def conv_bn(channels, filters):
            return [nn.Conv2d(channels, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]

        class Residual(nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.main = nn.Sequential(*conv_bn(channels, channels), *conv_bn(channels, channels))

            def forward(self, x):
                return self.main(x) + x

        return nn.Sequential(
            *conv_bn(3, width),
            *(*conv_bn(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width)),
            *(*conv_bn(2 * width, 4 * width), nn.MaxPool2d(2)),
            *(*conv_bn(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width)),
            *(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * width, CLASSES, bias=False)),
        )

    def step(self, net, batch, precision, captured, width=64):
        """Return a function that runs the next training step: eagerly, or captured and replayed.

        "fp16" has parameters of float32 and autocast, without the scaling of gradients that a real training needs;
        "half" has all but batch norms in float16, as speed runs do.
        """
        torch = self.torch
        torch.manual_seed(0)
        model = self.net(net, width).to(self.device, memory_format=torch.channels_last)
        if precision == "half":
            model.half()
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.float()
        dtype = torch.float16 if precision in ("fp16", "half") else torch.float32
        settings = {"momentum": MOMENTUM, "nesterov": True, "weight_decay": DECAY, "fused": self.device == "cuda"}
        optimizer = torch.optim.SGD(model.parameters(), RATE, **settings)
        images, labels = (torch.from_numpy(array).to(self.device) for array in data(net, batch))
        order = torch.randperm(BATCHES * batch, device=self.device).reshape(BATCHES, batch)
        picked = order[0].clone()
        loss_sum, right = (torch.zeros((), device=self.device) for _ in range(2))

        def train():
            x = images[picked].permute(0, 3, 1, 2).to(dtype).div_(255)  # the bytes lie channels last
            y = labels[picked]
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device, torch.float16, enabled=precision == "fp16"):
                outputs = model(x)
            loss = torch.nn.functional.cross_entropy(outputs.float(), y)
            loss.backward()
            optimizer.step()
            loss_sum.add_(loss.detach() * batch)
            right.add_((outputs.detach().argmax(1) == y).sum())

        call = self.captured(train, 1) if captured else train
        numbers = itertools.cycle(range(BATCHES))

        def step():
            picked.copy_(order[next(numbers)])
            call()

        return step

    def memory(self, make):
        """Return the MB that steps take: of the whole GPU, and the arrays' maximum, without trials of cuDNN."""
        cuda = self.torch.cuda
        self.tidy()
        free = cuda.mem_get_info()[0]
        step = make()
        for _ in range(WARM_UP):
            step()
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            step()
        cuda.synchronize()
        taken = free - cuda.mem_get_info()[0]
        return {"gpu_mb": taken / 1e6, "arrays_mb": cuda.max_memory_allocated() / 1e6}

    def tidy(self):
        """Give memory back that nothing uses."""
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()


def find_torch():
    """Return PyTorch's side and nothing, or None and why it is unavailable."""
    try:
        import torch
    except Exception as error:  # a library that does not load may raise anything
        return None, f"PyTorch cannot be imported ({type(error).__name__}: {error})"
    if not torch.cuda.is_available():
        return None, f"PyTorch {torch.__version__} sees no GPU"
    return Theirs(torch), ""
