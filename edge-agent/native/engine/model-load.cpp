#include "model-load.h"

#include "file-descriptor.h"
#include "llama-runtime.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>

namespace {

struct skipped_range { uint64_t begin, end; };

struct model_stream {
    file_descriptor file;
    uint64_t at = 0, bytes = 0;
    std::vector<skipped_range> experts;  // ascending, apart
    int error = 0;
};

// The first expert range that ends after `at`.
const skipped_range * range_from(const model_stream & s, uint64_t at) {
    const auto found = std::upper_bound(s.experts.begin(), s.experts.end(), at,
                                        [](uint64_t position, const skipped_range & r) { return position < r.end; });
    return found == s.experts.end() ? nullptr : &*found;
}

ssize_t stream_read(void * cookie, char * to, size_t n) {
    model_stream & s = *static_cast<model_stream *>(cookie);
    n = size_t(std::min<uint64_t>(n, s.bytes - std::min(s.at, s.bytes)));
    size_t done = 0;
    while (done < n) {
        const skipped_range * range = range_from(s, s.at);
        if (range && s.at >= range->begin) {
            const uint64_t skip = std::min<uint64_t>(n - done, range->end - s.at);
            s.at += skip;
            done += size_t(skip);
            continue;
        }
        const uint64_t until = range ? range->begin - s.at : UINT64_MAX;
        const ssize_t got = pread(s.file.fd, to + done, size_t(std::min<uint64_t>(n - done, until)), off_t(s.at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            s.error = got < 0 ? errno : EIO;
            return -1;
        }
        s.at += uint64_t(got);
        done += size_t(got);
    }
    return ssize_t(done);
}

int stream_seek(void * cookie, off64_t * offset, int whence) {
    model_stream & s = *static_cast<model_stream *>(cookie);
    const int64_t base = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? int64_t(s.at) : int64_t(s.bytes);
    if (base + *offset < 0) return -1;
    s.at = uint64_t(base + *offset);
    *offset = off64_t(s.at);
    return 0;
}

struct cancel_check { bool (*cancelled)(void *); void * data; };

bool go_on(float, void * data) {
    const cancel_check & check = *static_cast<cancel_check *>(data);
    return !check.cancelled || !check.cancelled(check.data);
}

std::vector<skipped_range> expert_ranges(const gguf_header & header) {
    std::vector<skipped_range> ranges;
    for (const auto & t : header.tensors) {
        int32_t block;
        std::string kind;
        if (expert_tensor_name(t.name, block, kind)) ranges.push_back({t.offset, t.offset + t.bytes});
    }
    std::sort(ranges.begin(), ranges.end(), [](const auto & a, const auto & b) { return a.begin < b.begin; });
    return ranges;
}

}  // namespace

engine_status model_load(const model_file & file, expert_memory & memory, bool (*cancelled)(void *), void * cancelled_data,
                         llama_model *& out) {
    out = nullptr;
    model_stream stream;
    stream.file = file_descriptor(open(file.info.path.c_str(), O_RDONLY | O_CLOEXEC));
    if (stream.file.fd < 0) return status_error(ENGINE_IO, "%s: %s", file.info.path.c_str(), strerror(errno));
    stream.bytes = file.info.file_bytes;
    stream.experts = expert_ranges(file.header);

    cookie_io_functions_t functions = {};
    functions.read = stream_read;
    functions.seek = stream_seek;
    FILE * handle = fopencookie(&stream, "rb", functions);
    if (!handle) return status_error(ENGINE_IO, "%s: no stream: %s", file.info.path.c_str(), strerror(errno));

    ggml_backend_dev_t no_devices[] = {nullptr};
    const llama_model_tensor_buft_override overrides[] = {{EXPERT_TENSOR_PATTERN, &memory.type}, {nullptr, nullptr}};
    cancel_check check{cancelled, cancelled_data};
    llama_model_params params = llama_model_default_params();
    params.devices = no_devices;
    params.n_gpu_layers = 0;
    params.tensor_buft_overrides = overrides;
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    params.lazy_mode = LLAMA_LAZY_MODE_OFF;
    params.use_extra_bufts = false;  // repacked experts would need a second copy of their bytes
    params.progress_callback = go_on;
    params.progress_callback_user_data = &check;

    memory.loading = true;
    llama_runtime_errors();
    out = llama_model_load_from_file_ptr(handle, params);
    fclose(handle);
    if (out) {
        const engine_status status = expert_memory_check(memory);
        if (!failed(status)) {
            memory.loading = false;
            return {};
        }
        llama_model_free(out);
        out = nullptr;
        return status;
    }
    if (cancelled && cancelled(cancelled_data)) return status_error(ENGINE_CANCELLED, "loading was cancelled");
    if (stream.error) return status_error(ENGINE_IO, "%s: %s", file.info.path.c_str(), strerror(stream.error));
    return status_error(ENGINE_MODEL_FORMAT, "%s: llama.cpp cannot load it: %s", file.info.path.c_str(), llama_runtime_errors().c_str());
}
