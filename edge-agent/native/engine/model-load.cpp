#include "model-load.h"

#include "llama-runtime.h"
#include "model-stream.h"

#include "gguf.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <memory>
#include <unordered_map>

namespace {

struct cancel_check {
    bool (*cancelled)(void *);
    void * data;
    bool now() const { return cancelled && cancelled(data); }
};

bool go_on(float, void * data) { return !static_cast<cancel_check *>(data)->now(); }

struct free_gguf { void operator()(gguf_context * g) const { gguf_free(g); } };
using gguf_ptr = std::unique_ptr<gguf_context, free_gguf>;

// llama.cpp's parameters and what they point to.
struct load_parameters {
    ggml_backend_dev_t no_devices[1] = {nullptr};
    llama_model_tensor_buft_override overrides[2];
    cancel_check check;
    llama_model_params params = llama_model_default_params();

    load_parameters(expert_memory & memory, cancel_check c) : overrides{{EXPERT_TENSOR_PATTERN, &memory.type}, {nullptr, nullptr}}, check(c) {
        params.devices = no_devices;
        params.n_gpu_layers = 0;
        params.tensor_buft_overrides = overrides;
        params.load_mode = LLAMA_LOAD_MODE_NONE;
        params.lazy_mode = LLAMA_LAZY_MODE_OFF;
        params.use_extra_bufts = false;  // repacked experts would need a second copy of their bytes
        params.progress_callback = go_on;
        params.progress_callback_user_data = &check;
    }
    load_parameters(const load_parameters &) = delete;
};

struct tensor_source {
    file_descriptor file;
    std::unordered_map<std::string, const gguf_tensor *> tensors;
    cancel_check check;
    bool as_filed = true;   // llama.cpp asked for nothing but what the file has, in its type and shape
    int error = 0;
};

bool same_shape(const gguf_tensor & filed, const ggml_tensor & asked) {
    if (filed.type != int32_t(asked.type)) return false;
    for (int d = 0; d < 4; d++) {
        if (filed.ne[d] != asked.ne[d]) return false;
    }
    return true;
}

void fill_tensor(ggml_tensor * tensor, void * data) {
    tensor_source & source = *static_cast<tensor_source *>(data);
    const auto found = source.tensors.find(tensor->name);
    if (found == source.tensors.end() || !same_shape(*found->second, *tensor)) source.as_filed = false;
    if (!source.as_filed || source.error || source.check.now()) return;
    int32_t block;
    std::string kind;
    if (expert_tensor_name(tensor->name, block, kind)) return;
    char * to = static_cast<char *>(tensor->data);
    for (uint64_t done = 0; done < found->second->bytes;) {
        const ssize_t got = pread(source.file.fd, to + done, size_t(found->second->bytes - done), off_t(found->second->offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            source.error = got < 0 ? errno : EIO;
            return;
        }
        done += uint64_t(got);
    }
}

// Null where llama.cpp refused, was cancelled, or asked for what the file does not have.
llama_model * load_directly(const model_file & file, expert_memory & memory, cancel_check check, int & error) {
    tensor_source source;
    source.file = file_descriptor(open(file.info.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (source.file.fd < 0) {
        error = errno;
        return nullptr;
    }
    source.check = check;
    for (const auto & t : file.header.tensors) source.tensors.emplace(t.name, &t);
    gguf_ptr metadata(gguf_init_from_file(file.info.path.c_str(), gguf_init_params{true, nullptr}));
    if (!metadata) return nullptr;
    load_parameters parameters(memory, check);
    llama_model * model = llama_model_init_from_user(metadata.get(), fill_tensor, &source, parameters.params);
    error = source.error;
    if (model && (!source.as_filed || error || check.now())) {
        llama_model_free(model);
        model = nullptr;
    }
    return model;
}

engine_status io_failure(const model_file & file, int error) {
    return status_error(ENGINE_IO, "%s: %s", file.info.path.c_str(), strerror(error));
}

}  // namespace

engine_status model_load_by_stream(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                                   llama_model *& out) {
    out = nullptr;
    model_stream stream;
    FILE * handle = model_stream_open(stream, file, memory);
    if (!handle) return io_failure(file, errno);
    const cancel_check check{cancelled, cancelled_data};
    load_parameters parameters(memory, check);
    llama_runtime_errors();
    out = llama_model_load_from_file_ptr(handle, parameters.params);
    fclose(handle);
    engine_status status;
    if (out) status = expert_memory_check(memory);
    else if (check.now()) status = status_error(ENGINE_CANCELLED, "loading was cancelled");
    else if (stream.error) status = io_failure(file, stream.error);
    else status = status_error(ENGINE_MODEL_FORMAT, "%s: llama.cpp cannot load it: %s", file.info.path.c_str(), llama_runtime_errors().c_str());
    if (failed(status) && out) {
        llama_model_free(out);
        out = nullptr;
    }
    if (out) expert_memory_clear(memory);
    return status;
}

engine_status model_load(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                         llama_model *& out) {
    const cancel_check check{cancelled, cancelled_data};
    int error = 0;
    out = load_directly(file, memory, check, error);
    if (out && !failed(expert_memory_check(memory))) return {};
    if (out) llama_model_free(out);
    out = nullptr;
    if (error) return io_failure(file, error);
    if (check.now()) return status_error(ENGINE_CANCELLED, "loading was cancelled");
    expert_memory_forget_places(memory);
    return model_load_by_stream(file, memory, cancelled, cancelled_data, out);
}
