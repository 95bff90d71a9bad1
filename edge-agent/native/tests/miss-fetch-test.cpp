#include "miss-fetch.h"

#include "check.h"

#include <cstring>
#include <fstream>

static const char * MODEL = FIXTURES "/tinymoe-17m-q8_0.gguf";

// An expert that cannot be read gives its pages back; its neighbour, read in the same batch, shares one of them.
static void a_failed_read_spares_its_neighbours() {
    temporary_folder folder;
    const std::string path = folder.file("model.gguf");
    copy_file(MODEL, path);
    std::string version;
    REQUIRE_OK(engine_version(version));
    model_file file;
    REQUIRE_OK(model_file_read(path, file));
    expert_memory memory;
    expert_memory_init(memory, file);
    ggml_init_params params{ggml_tensor_overhead() * 64, nullptr, true};
    ggml_context * context = ggml_init(params);
    for (const auto & t : file.header.tensors) {
        int32_t block;
        std::string kind;
        if (!expert_tensor_name(t.name, block, kind)) continue;
        ggml_set_name(ggml_new_tensor(context, ggml_type(t.type), t.dims, t.ne), t.name.c_str());
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, &memory.type);
    REQUIRE_OK(expert_memory_check(memory));

    // The matrix that comes last in the file loses expert 6.
    int layer = 0, matrix = 0;
    for (int l = 0; l < int(memory.layers.size()); l++) {
        for (int p = 0; p < memory.layers[size_t(l)].n_places; p++) {
            if (memory.layers[size_t(l)].places[p].file_offset > memory.layers[size_t(layer)].places[matrix].file_offset) {
                layer = l;
                matrix = p;
            }
        }
    }
    const expert_place & place = memory.layers[size_t(layer)].places[matrix];
    std::vector<char> expected(place.bytes);
    std::ifstream in(path, std::ios::binary);
    in.seekg(std::streamoff(place.file_offset + 5 * place.bytes)).read(expected.data(), std::streamsize(expected.size()));
    if (truncate(path.c_str(), off_t(place.file_offset + 6 * place.bytes + 100)) != 0) exit(1);

    flash_reader reader;
    REQUIRE_OK(flash_reader_open(reader, {path}, false, 2, file.info.experts * EXPERT_MATRICES));
    engine_totals totals;
    layer_states layers;
    engine_spec spec;
    spec.capacities.assign(memory.layers.size(), 8);
    layer_states_init(layers, file.info.experts, spec);
    layer_hook hook;
    layer_hook_init(hook, file.info, memory, reader, totals, false);
    hook.layers = hook.owner = &layers;
    hook.missed[0] = 6;
    hook.missed[1] = 5;
    miss_fetch_begin(hook, layer, 2);
    miss_fetch_finish(hook);
    CHECK_EQUAL(hook.error.code, ENGINE_IO);
    CHECK(!memory.layers[size_t(layer)].present[6]);
    CHECK(memory.layers[size_t(layer)].present[5]);
    CHECK(memcmp(place.base + 5 * place.bytes, expected.data(), expected.size()) == 0);
    flash_reader_close(reader);
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
}

int main() {
    a_failed_read_spares_its_neighbours();
    return checks_done();
}
