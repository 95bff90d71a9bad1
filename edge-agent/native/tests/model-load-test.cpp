#include "model-load.h"

#include "check.h"

#include <cstdio>
#include <cstring>

static const char * MODEL = FIXTURES "/tinymoe-17m-q8_0.gguf";

static long status_kib(const char * field) {
    FILE * f = fopen("/proc/self/status", "r");
    char line[256];
    long value = -1;
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, field, strlen(field)) == 0) value = strtol(line + strlen(field) + 1, nullptr, 10);
    }
    fclose(f);
    return value;
}

// Both ways must fill dense tensors alike and leave expert pages untouched.
static std::vector<float> logits_with_experts(llama_model * model, expert_memory & memory) {
    FILE * f = fopen(MODEL, "rb");
    for (auto & layer : memory.layers) {
        for (int i = 0; i < layer.n_places; i++) {
            const expert_place & p = layer.places[i];
            fseek(f, long(p.file_offset), SEEK_SET);
            CHECK_EQUAL(fread(p.base, p.bytes, size_t(memory.experts), f), size_t(memory.experts));
        }
    }
    fclose(f);
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = 64;
    cp.n_threads = cp.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, cp);
    std::vector<int32_t> tokens = {5, 300, 2000, 17, 4000};
    CHECK_EQUAL(llama_decode(context, llama_batch_get_one(tokens.data(), 5)), 0);
    const float * logits = llama_get_logits_ith(context, -1);
    std::vector<float> out(logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)));
    llama_free(context);
    return out;
}

int main() {
    std::string version;
    REQUIRE_OK(engine_version(version));
    model_file file;
    REQUIRE_OK(model_file_read(MODEL, file));

    expert_memory direct, streamed;
    expert_memory_init(direct, file);
    expert_memory_init(streamed, file);
    llama_model * one = nullptr;
    llama_model * two = nullptr;
    REQUIRE_OK(model_load(file, direct, nullptr, nullptr, one));
    REQUIRE_OK(model_load_by_stream(file, streamed, nullptr, nullptr, two));
    for (const auto & layer : streamed.layers) {
        for (int i = 0; i < layer.n_places; i++) {
            for (uint64_t b = 0; b < layer.places[i].bytes * 32; b += 997) CHECK_EQUAL(layer.places[i].base[b], 0);
        }
    }
    CHECK(logits_with_experts(one, direct) == logits_with_experts(two, streamed));
    llama_model_free(one);
    llama_model_free(two);

    // Five times the experts: the peak must not follow.
    temporary_folder folder;
    const std::string wide = folder.file("wide.gguf");
    widen_options options;
    widen_result widened;
    options.width = 3200;
    REQUIRE_OK(engine_widen(MODEL, wide, options, nullptr, widened));
    REQUIRE_OK(model_file_read(wide, file));
    expert_memory_init(direct, file);
    expert_memory_init(streamed, file);
    const long before = status_kib("VmHWM");
    REQUIRE_OK(model_load(file, direct, nullptr, nullptr, one));
    REQUIRE_OK(model_load_by_stream(file, streamed, nullptr, nullptr, two));
    const long grown = status_kib("VmHWM") - before;
    printf("a file of %.0f MiB, loaded twice: %+.1f MiB at most\n", double(widened.file.bytes) / (1 << 20), double(grown) / 1024);
    CHECK(grown < 60 * 1024);
    llama_model_free(one);
    llama_model_free(two);

    const auto always = [](void *) { return true; };
    CHECK_EQUAL(model_load(file, direct, always, nullptr, one).code, ENGINE_CANCELLED);
    CHECK(one == nullptr);
    return checks_done();
}
