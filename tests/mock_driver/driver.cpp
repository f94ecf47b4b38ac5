// A mock NVIDIA GPU: as much of the CUDA runtime, its driver, NVRTC and cuBLAS as the real CuPy asks for here.
//
// One library goes by all four names. Memory is the host's, kernels are compiled for the host (kernels.py), and work is
// put off as long as a GPU could put it off: it is done when somebody waits for its stream, so that what forgets to
// wait finds garbage. Streams that do not wait for the default stream have separate queues. What a stream captures
// is noted instead of done. Functions that are not here are made by run.py; they say so and fail.
//
// Freed memory is never given out again, and what touches it, or memory of another GPU, ends the process with a message.
// A handle of cuBLAS serves one thread and one GPU. MOCK_DEVICES is the number of GPUs, MOCK_MEMORY the bytes
// that each has.

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

using Work = std::vector<std::function<void()>>;
using Range = std::map<const char*, size_t>;  // addresses, and the bytes that follow

struct Block {
    size_t bytes;
    int device;
};

struct Stream {
    int device = 0;
    bool waits_for_default = true, captures = false, spoilt = false;
    Work queue, captured;
};

struct Event {
    double time = 0;
    Stream* stream = nullptr;
    bool captured = false;
};

size_t setting(const char* name, size_t otherwise) {
    const char* text = getenv(name);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

const size_t TOTAL = setting("MOCK_MEMORY", 8ull << 30);  // bytes of memory
constexpr int MAX_DEVICES = 4;
constexpr size_t LINE = 512, PAGE = 4096;  // bytes, on which pinned and other allocations begin

std::recursive_mutex mutex;
thread_local int device = 0;  // that the thread works on
Stream default_streams[MAX_DEVICES] = {{0}, {1}, {2}, {3}};
std::set<Stream*> streams, capturing;
std::map<const char*, Block> memory, freed;
Range pinned;
size_t used[MAX_DEVICES];

double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename... Arguments>
void say(const char* format, Arguments... arguments) {
    fprintf(stderr, format, arguments...);
    fputs("\n", stderr);
}

size_t bytes_of(size_t bytes) { return bytes; }
size_t bytes_of(const Block& block) { return block.bytes; }

template <typename Ranges>
auto range_of(const Ranges& ranges, const void* start, size_t bytes = 1) {
    auto next = ranges.upper_bound((const char*)start);
    if (next == ranges.begin()) return ranges.end();
    --next;
    return (const char*)start + bytes <= next->first + bytes_of(next->second) ? next : ranges.end();
}

template <typename Ranges>
bool lies_in(const Ranges& ranges, const void* start, size_t bytes = 1) {
    return range_of(ranges, start, bytes) != ranges.end();
}

// End the process if what is about to run has the address of memory that it must not touch.
void check(const char* what, int of_device, const void* address) {
    const auto block = range_of(memory, address);
    const bool elsewhere = block != memory.end() && block->second.device != of_device;
    if (!elsewhere && !lies_in(freed, address)) return;
    say("mock GPU: %s on device %d touches memory that %s", what, of_device,
        elsewhere ? "lies on another device" : "was freed");
    _exit(134);
}

Stream* stream_of(const void* handle) {  // 0, and what CUDA calls legacy and per thread, is that of the device
    return (size_t)handle <= 2 ? &default_streams[device] : (Stream*)handle;
}

void finish(Stream* stream) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (stream->waits_for_default) stream = &default_streams[stream->device];
    while (!stream->queue.empty()) {
        Work work;
        work.swap(stream->queue);
        for (auto& call : work) call();
    }
}

void finish_all() {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    for (Stream& stream : default_streams) finish(&stream);
    for (Stream* stream : streams) finish(stream);
}

int start(const void* handle, std::function<void()> call) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    Stream* stream = stream_of(handle);
    if (stream->captures) {
        stream->captured.push_back(std::move(call));
        return 0;
    }
    if (stream == &default_streams[stream->device])
        for (Stream* other : capturing)
            if (other->waits_for_default && other->device == stream->device) {
                other->spoilt = true;
                return cudaErrorStreamCaptureImplicit;
            }
    (stream->waits_for_default ? default_streams[stream->device] : *stream).queue.push_back(std::move(call));
    return 0;
}

int copy(void* to, const void* from, size_t bytes, int kind) {
    const bool to_device = lies_in(memory, to), from_device = lies_in(memory, from);
    const bool wrong = (kind == cudaMemcpyHostToDevice && (!to_device || from_device)) ||
                       (kind == cudaMemcpyDeviceToHost && (to_device || !from_device)) ||
                       (kind == cudaMemcpyDeviceToDevice && (!to_device || !from_device));
    if (bytes && wrong) {
        say("mock GPU: a copy of kind %d to %s from %s", kind, to_device ? "the device" : "the host",
            from_device ? "the device" : "the host");
        return cudaErrorInvalidValue;
    }
    if ((to_device && !lies_in(memory, to, bytes)) || (from_device && !lies_in(memory, from, bytes))) {
        say("mock GPU: a copy of %zu bytes goes beyond an allocation", bytes);
        return cudaErrorIllegalAddress;
    }
    memmove(to, from, bytes);
    return 0;
}

thread_local int last_error = 0;

cudaError_t answer(int error) {
    if (error) last_error = error;
    return (cudaError_t)error;
}

int device_count() {
    const char* visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && !strcmp(visible, "-1") ? 0 : (int)std::min<size_t>(setting("MOCK_DEVICES", 1), MAX_DEVICES);
}

std::string text_of(const std::string& path) {
    std::string text;
    if (FILE* file = fopen(path.c_str(), "rb")) {
        char part[65536];
        while (size_t length = fread(part, 1, sizeof part, file)) text.append(part, length);
        fclose(file);
    }
    return text;
}

}  // namespace

extern "C" {

// --- the runtime: the device ---------------------------------------------------------------------

const char* cudaGetErrorName(cudaError_t error) {
    static thread_local char text[64];
    snprintf(text, sizeof text, "cudaError%d", (int)error);
    return text;
}
const char* cudaGetErrorString(cudaError_t) { return "said by a mock GPU"; }
cudaError_t cudaGetLastError() {
    const int error = last_error;
    last_error = 0;
    return (cudaError_t)error;
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
    return answer((*count = device_count()) ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int* number) {
    return *number = device, answer(device_count() ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int number) {
    if (number < 0 || number >= device_count()) return answer(cudaErrorInvalidDevice);
    device = number;
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    for (Stream* stream : capturing)
        if (stream->device == device) return stream->spoilt = true, answer(cudaErrorStreamCaptureUnsupported);
    finish_all();
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    static const std::map<int, int> values = {
        {cudaDevAttrComputeCapabilityMajor, 9},       {cudaDevAttrComputeCapabilityMinor, 0},
        {cudaDevAttrMultiProcessorCount, 132},        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrWarpSize, 32},                    {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
        {cudaDevAttrMaxGridDimX, 2147483647},
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 1 : found->second;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {};
    strcpy(properties->name, "a mock GPU");
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->totalGlobalMem = TOTAL;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->sharedMemPerBlock = 49152;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int) {
    return snprintf(text, length, "0000:00:00.0"), cudaSuccess;
}

// --- memory --------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** address, size_t bytes) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    if (used[device] + bytes > TOTAL) return answer(cudaErrorMemoryAllocation);
    *address = mmap(nullptr, (bytes / PAGE + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*address == MAP_FAILED) return answer(cudaErrorMemoryAllocation);
    memset(*address, 0xff, bytes);  // NaN, in every type of float
    memory[(char*)*address] = {bytes, device};
    used[device] += bytes;
    return cudaSuccess;
}
cudaError_t cudaFree(void* address) {
    if (!address) return cudaSuccess;
    finish_all();
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto found = memory.find((char*)address);
    if (found == memory.end()) return answer(cudaErrorInvalidValue);
    used[found->second.device] -= found->second.bytes;
    freed.insert(*found);
    const size_t pages = (found->second.bytes / PAGE + 1) * PAGE;
    memory.erase(found);
    madvise(address, pages, MADV_DONTNEED);
    mprotect(address, pages, PROT_NONE);  // for good
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* unused, size_t* total) {
    *unused = TOTAL - used[device];
    *total = TOTAL;
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    *address = aligned_alloc(LINE, (bytes / LINE + 1) * LINE);
    pinned[(char*)*address] = bytes;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void* address) {
    finish_all();
    std::lock_guard<std::recursive_mutex> lock(mutex);
    pinned.erase((char*)address);
    free(address);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    for (Stream* stream : capturing)
        if (stream->waits_for_default) return answer(cudaErrorStreamCaptureImplicit);
    finish(&default_streams[device]);
    return answer(copy(to, from, bytes, kind));
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t handle) {
    auto call = [=, on = device] {
        for (const void* address : {(const void*)to, from}) check("a copy", on, address);
        if (copy(to, from, bytes, kind)) abort();
    };
    const bool from_device = lies_in(memory, from), to_device = lies_in(memory, to);
    if (stream_of(handle)->captures) {
        if (!from_device || !to_device) say("mock GPU: a copy between host and device is captured");
    } else if (to_device && !from_device && !lies_in(pinned, from)) {
        // the driver takes what lies in ordinary memory before it returns
        auto taken = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
        return answer(start(handle, [=] {
            if (copy(to, taken->data(), bytes, kind)) abort();
        }));
    } else if (from_device && !to_device && !lies_in(pinned, to)) {
        finish(stream_of(handle));
        return answer(copy(to, from, bytes, kind));
    }
    return answer(start(handle, call));
}
cudaError_t cudaMemset(void* address, int byte, size_t bytes) {
    finish(&default_streams[device]);
    memset(address, byte, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* address, int byte, size_t bytes, cudaStream_t handle) {
    if (!lies_in(memory, address, bytes)) return answer(cudaErrorIllegalAddress);
    return answer(start(handle, [=, on = device] {
        check("a memset", on, address);
        memset(address, byte, bytes);
    }));
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
    *attributes = {};
    attributes->type = lies_in(memory, address) ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = (void*)address;
    const auto block = range_of(memory, address);
    attributes->device = block == memory.end() ? device : block->second.device;
    return cudaSuccess;
}

// --- streams, events, graphs ---------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    auto stream = new Stream;
    stream->waits_for_default = !(flags & cudaStreamNonBlocking);
    stream->device = device;
    streams.insert(stream);
    *handle = (cudaStream_t)stream;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithFlags(handle, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int) {
    return cudaStreamCreateWithFlags(handle, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) { return finish(stream_of(handle)), cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    Stream* stream = stream_of(handle);
    if (stream->captures) {
        stream->spoilt = true;
        return answer(cudaErrorStreamCaptureUnsupported);
    }
    finish(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) { return cudaStreamSynchronize(handle); }
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
    return *flags = stream_of(handle)->waits_for_default ? 0 : cudaStreamNonBlocking, cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
    Stream* other = ((Event*)event)->stream;
    return answer(start(handle, [=] {
        if (other) finish(other);
    }));
}
cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    Stream* stream = stream_of(handle);
    if (stream == &default_streams[stream->device] || stream->captures)
        return answer(cudaErrorStreamCaptureUnsupported);
    stream->captures = true;
    stream->spoilt = false;
    stream->captured.clear();
    capturing.insert(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    std::lock_guard<std::recursive_mutex> lock(mutex);
    Stream* stream = stream_of(handle);
    if (!stream->captures) return answer(cudaErrorIllegalState);
    stream->captures = false;
    capturing.erase(stream);
    if (stream->spoilt) return answer(cudaErrorStreamCaptureInvalidated);
    auto work = new Work;
    work->swap(stream->captured);
    *graph = (cudaGraph_t)work;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    *status = stream_of(handle)->captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
    return *made = (cudaGraphExec_t) new Work(*(Work*)graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t handle) {
    if (stream_of(handle)->captures) return answer(cudaErrorStreamCaptureUnsupported);
    auto work = std::make_shared<Work>(*(Work*)graph);
    return answer(start(handle, [=] {
        for (auto& call : *work) call();
    }));
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete (Work*)graph, cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete (Work*)graph, cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = (cudaEvent_t) new Event, cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete (Event*)event, cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    Stream* stream = stream_of(handle);
    *(Event*)event = {now(), stream, stream->captures};
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    auto event = (Event*)handle;
    if (event->captured) return answer(cudaErrorCapturedEvent);
    if (event->stream) finish(event->stream);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
    return *milliseconds = 1e3 * (((Event*)to)->time - ((Event*)from)->time), cudaSuccess;
}

// --- the driver: modules and launches ------------------------------------------------------------

struct Kernel {
    std::string name;
    const char* (*run)(const unsigned* grid, const unsigned* block, void** arguments);
    int count;  // of arguments
    const size_t* sizes;
};

CUresult cuGetErrorName(CUresult error, const char** text) {
    return *text = cudaGetErrorName((cudaError_t)error), CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) { return *text = cudaGetErrorString(cudaSuccess), CUDA_SUCCESS; }
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = (CUcontext)&memory, CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* number) { return *number = device, CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule* module, const void* image) {
    void* library = dlopen((const char*)image, RTLD_NOW | RTLD_LOCAL);  // kernels.py leaves a path for machine code
    if (!library) say("mock GPU: %s", dlerror());
    *module = (CUmodule)library;
    return library ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}
CUresult cuModuleLoad(CUmodule* module, const char* path) { return cuModuleLoadData(module, text_of(path).c_str()); }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    auto of = [&](const char* what) { return dlsym((void*)module, (std::string(what) + name).c_str()); };
    if (!of("run_")) return CUDA_ERROR_NOT_FOUND;
    *function = (CUfunction) new Kernel{name, (decltype(Kernel::run))of("run_"), *(int*)of("count_"),
                                        *(const size_t**)of("sizes_")};
    return CUDA_SUCCESS;
}
CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, CUmodule, const char*) { return CUDA_ERROR_NOT_FOUND; }
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, CUstream stream, void** given, void**) {
    auto kernel = (Kernel*)function;
    if (!(gx && gy && gz && bx && by && bz) || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || shared > 49152) {
        say("mock GPU: %s cannot have a grid (%u, %u, %u) of blocks (%u, %u, %u) with %u bytes shared",
            kernel->name.c_str(), gx, gy, gz, bx, by, bz, shared);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (stream_of(stream)->device != device) {
        say("mock GPU: %s is launched on device %d in a stream of device %d", kernel->name.c_str(), device,
            stream_of(stream)->device);
        return CUDA_ERROR_INVALID_HANDLE;
    }
    auto arguments = std::make_shared<std::vector<std::vector<char>>>();
    for (int i = 0; i < kernel->count; i++)
        arguments->emplace_back((char*)given[i], (char*)given[i] + kernel->sizes[i]);
    return (CUresult)start(stream, [=, on = device] {
        std::vector<void*> places;
        for (auto& argument : *arguments) {
            places.push_back(argument.data());
            if (argument.size() >= sizeof(void*))  // an address, or an array of CuPy's, which begins with one
                check(kernel->name.c_str(), on, *(void**)argument.data());
        }
        const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
        if (const char* wrong = kernel->run(grid, block, places.data())) {
            say("mock GPU: %s: %s", kernel->name.c_str(), wrong);
            abort();
        }
    });
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
    return *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
    return *blocks = 2, CUDA_SUCCESS;
}

// --- NVRTC ---------------------------------------------------------------------------------------

struct Program {
    std::string text, code, log;
};

const char* nvrtcGetErrorString(int) { return "NVRTC_ERROR_COMPILATION"; }
int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0; }
int nvrtcGetNumSupportedArchs(int* count) { return *count = 1, 0; }
int nvrtcGetSupportedArchs(int* architectures) { return *architectures = 90, 0; }
int nvrtcCreateProgram(Program** program, const char* text, const char*, int, const char**, const char**) {
    return *program = new Program{text, "", ""}, 0;
}
int nvrtcDestroyProgram(Program** program) { return delete *program, 0; }
int nvrtcCompileProgram(Program* program, int count, const char** options) {
    char name[] = "/tmp/mock-driver-XXXXXX";
    const std::string folder = mkdtemp(name);
    if (FILE* file = fopen((folder + "/text.cu").c_str(), "wb")) {
        fwrite(program->text.data(), 1, program->text.size(), file);
        fclose(file);
    }
    if (FILE* file = fopen((folder + "/options").c_str(), "wb")) {
        for (int i = 0; i < count; i++) fprintf(file, "%s\n", options[i]);
        fclose(file);
    }
    const std::string command = getenv("MOCK_DRIVER_COMPILER");  // of run.py
    const int status = system((command + " " + folder + " > " + folder + "/log 2>&1").c_str());
    program->code = text_of(folder + "/code");
    program->log = text_of(folder + "/log");
    system(("rm -r " + folder).c_str());
    return status ? 6 : 0;
}
int nvrtcGetCUBINSize(Program* program, size_t* size) { return *size = program->code.size() + 1, 0; }
int nvrtcGetCUBIN(Program* program, char* code) { return strcpy(code, program->code.c_str()), 0; }
int nvrtcGetPTXSize(Program* program, size_t* size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(Program* program, char* code) { return nvrtcGetCUBIN(program, code); }
int nvrtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program* program, char* log) { return strcpy(log, program->log.c_str()), 0; }
int nvrtcAddNameExpression(Program*, const char*) { return 0; }

// --- cuBLAS --------------------------------------------------------------------------------------

struct Blas {
    void *stream, *workspace;
    int device;
    std::thread::id thread;  // that has set the stream
};

int cublasCreate_v2(Blas** handle) { return *handle = new Blas{nullptr, nullptr, device, std::this_thread::get_id()}, 0; }
int cublasDestroy_v2(Blas* handle) { return delete handle, 0; }
int cublasSetStream_v2(Blas* handle, void* stream) {
    return *handle = {stream, nullptr, handle->device, std::this_thread::get_id()}, 0;  // the workspace is taken away
}
int cublasSetWorkspace_v2(Blas* handle, void* workspace, size_t size) {
    if (!lies_in(memory, workspace, size) || (size_t)workspace % 256) return 7;
    return handle->workspace = workspace, 0;
}
int cublasSetPointerMode_v2(Blas*, int) { return 0; }
int cublasSetMathMode(Blas*, int) { return 0; }
int cublasGetVersion_v2(Blas*, int* version) { return *version = 130000, 0; }

}  // extern "C"

namespace {

struct Shape {
    bool turn_a, turn_b;
    long m, n, k, lda, ldb, ldc;
};

template <typename In, typename Out, typename Sum>
std::function<void()> product(Shape s, const void* A, const void* B, void* C, const void* factor, const void* share) {
    const Sum alpha = *(const Sum*)factor, beta = *(const Sum*)share;
    auto a = (const In*)A, b = (const In*)B;
    auto c = (Out*)C;
    return [=] {
        for (long j = 0; j < s.n; j++)
            for (long i = 0; i < s.m; i++) {
                Sum sum = 0;
                for (long l = 0; l < s.k; l++)
                    sum += (Sum)(s.turn_a ? a[l + i * s.lda] : a[i + l * s.lda]) *
                           (Sum)(s.turn_b ? b[j + l * s.ldb] : b[l + j * s.ldb]);
                Out& to = c[i + j * s.ldc];
                to = (Out)(alpha * sum + (beta == 0 ? (Sum)0 : beta * (Sum)to));
            }
    };
}

}  // namespace

extern "C" {

int cublasGemmEx(Blas* handle, int turn_a, int turn_b, int m, int n, int k, const void* alpha, const void* a,
                 int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c, int type_c,
                 int ldc, int compute, int) {
    const int rows_a = turn_a ? k : m, rows_b = turn_b ? n : k, columns_a = turn_a ? m : k, columns_b = turn_b ? k : n;
    auto bytes = [](int type, long rows, long columns, long lead) {
        return ((columns - 1) * lead + rows) * (type == 0 ? 4 : type == 1 ? 8 : 2);
    };
    if (lda < std::max(1, rows_a) || ldb < std::max(1, rows_b) || ldc < std::max(1, m)) return 7;
    if (m && n && k &&
        (!lies_in(memory, a, bytes(type_a, rows_a, columns_a, lda)) ||
         !lies_in(memory, b, bytes(type_b, rows_b, columns_b, ldb)) || !lies_in(memory, c, bytes(type_c, m, n, ldc))))
        return 14;
    if (handle->device != device || handle->thread != std::this_thread::get_id()) {
        say("mock GPU: a handle of cuBLAS is used %s",
            handle->device != device ? "on another device" : "by a thread that has not set its stream");
        return 14;
    }
    if (stream_of(handle->stream)->captures && !handle->workspace)
        say("mock GPU: cuBLAS is captured without its own workspace");
    const Shape shape = {(bool)turn_a, (bool)turn_b, m, n, k, lda, ldb, ldc};
    const int types = 100 * type_a + 10 * type_b + type_c;
    const bool of_floats = compute == 68 || compute == 77;
    std::function<void()> call;
    if (compute == 70 && types == 111) call = product<double, double, double>(shape, a, b, c, alpha, beta);
    if (of_floats && types == 0) call = product<float, float, float>(shape, a, b, c, alpha, beta);
    if (compute == 68 && types == 222) call = product<_Float16, _Float16, float>(shape, a, b, c, alpha, beta);
    if (compute == 68 && types == 220) call = product<_Float16, float, float>(shape, a, b, c, alpha, beta);
    if (!call) return 15;
    const void *places[] = {a, b, c, handle->workspace};
    return start(handle->stream, [=, on = device] {
        for (const void* place : places) check("a product", on, place);
        call();
    });
}
int cublasSgemm_v2(Blas* handle, int turn_a, int turn_b, int m, int n, int k, const float* alpha, const float* a,
                   int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
    return cublasGemmEx(handle, turn_a, turn_b, m, n, k, alpha, a, 0, lda, b, 0, ldb, beta, c, 0, ldc, 68, -1);
}
int cublasDgemm_v2(Blas* handle, int turn_a, int turn_b, int m, int n, int k, const double* alpha, const double* a,
                   int lda, const double* b, int ldb, const double* beta, double* c, int ldc) {
    return cublasGemmEx(handle, turn_a, turn_b, m, n, k, alpha, a, 1, lda, b, 1, ldb, beta, c, 1, ldc, 70, -1);
}

}  // extern "C"

// What run.py adds for each other function that CuPy is linked with. CUDA's headers declare some of them their own way.
#define MISSING(function, name)                    \
    extern "C" int function() asm(name);           \
    int function() {                               \
        say("mock GPU: there is no %s", name); \
        return cudaErrorNotSupported;              \
    }
