#include "model-load.h"

#include "file-read.h"
#include "llama-runtime.h"
#include "model-stream.h"

#include <unordered_map>

namespace {

struct cancel_check {
    bool (*cancelled)(void *);
    void * data;
    bool now() const { return cancelled && cancelled(data); }
};

bool go_on(float, void * data) { return !static_cast<cancel_check *>(data)->now(); }

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
    model_files files;
    std::unordered_map<std::string, const gguf_tensor *> tensors;
    cancel_check check;
    bool as_filed = true;   // llama.cpp asked for nothing but what the file has, in its type and shape
    int error = 0;
    size_t failed_file = 0;
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
    const int error = model_files_read(source.files, tensor->data, size_t(found->second->bytes), found->second->offset);
    if (!error) return;
    source.error = error;
    source.failed_file = position_file(found->second->offset);
}

// Null where llama.cpp refused, was cancelled, or asked for what the model does not have; `status` where a file could not
// be read.
llama_model * load_directly(const model_file & file, expert_memory & memory, cancel_check check, engine_status & status) {
    tensor_source source;
    status = model_files_open(source.files, file.info.files);
    const gguf_ptr metadata = failed(status) ? nullptr : model_shards_metadata(file.info.files);
    if (!metadata) return nullptr;
    source.check = check;
    for (const auto & t : file.header.tensors) source.tensors.emplace(t.name, &t);
    load_parameters parameters(memory, check);
    llama_model * model = llama_model_init_from_user(metadata.get(), fill_tensor, &source, parameters.params);
    if (source.error) status = file_read_failed(file.info.files[source.failed_file], source.error);
    if (model && (!source.as_filed || source.error || check.now())) {
        llama_model_free(model);
        model = nullptr;
    }
    return model;
}

}  // namespace

engine_status model_load_by_stream(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                                   llama_model *& out) {
    out = nullptr;
    model_stream stream;
    FILE * handle = model_stream_open(stream, file, memory);
    if (!handle) return stream.status;
    const cancel_check check{cancelled, cancelled_data};
    load_parameters parameters(memory, check);
    llama_runtime_errors();
    out = llama_model_load_from_file_ptr(handle, parameters.params);
    fclose(handle);
    engine_status status;
    if (out) status = expert_memory_check(memory);
    else if (check.now()) status = status_error(ENGINE_CANCELLED, "loading was cancelled");
    else if (failed(stream.status)) status = stream.status;
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
    engine_status status;
    out = load_directly(file, memory, check, status);
    if (out && !failed(expert_memory_check(memory))) return {};
    if (out) llama_model_free(out);
    out = nullptr;
    if (failed(status)) return status;
    if (check.now()) return status_error(ENGINE_CANCELLED, "loading was cancelled");
    expert_memory_forget_places(memory);
    return model_load_by_stream(file, memory, cancelled, cancelled_data, out);
}
