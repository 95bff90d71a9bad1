#include "llama-runtime.h"

#include "llama.h"

#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <mutex>
#include <sched.h>
#include <set>
#include <utility>

namespace {

std::mutex log_mutex;
std::string log_errors;

void keep_errors(ggml_log_level level, const char * text, void *) {
    if (level != GGML_LOG_LEVEL_ERROR) return;
    std::lock_guard<std::mutex> lock(log_mutex);
    log_errors += text;
    // The last lines name the cause.
    const size_t longest = 300;
    if (log_errors.size() > longest) log_errors.erase(0, log_errors.size() - longest);
}

std::string library_folder() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void *>(&llama_backend_init), &info) || !info.dli_fname) return "";
    const std::string path = info.dli_fname;
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

// llama.cpp picks the best libggml-cpu-<variant>.so; the name of the one that is mapped says which.
int find_cpu_library(dl_phdr_info * info, size_t, void * out) {
    const char * name = info->dlpi_name ? strstr(info->dlpi_name, "libggml-cpu") : nullptr;
    if (!name) return 0;
    std::string variant = name + strlen("libggml-cpu");
    const size_t dot = variant.find('.');
    if (dot != std::string::npos) variant.resize(dot);
    if (!variant.empty() && variant[0] == '-') variant.erase(0, 1);
    *static_cast<std::string *>(out) = variant;
    return 1;
}

long read_number(const char * format, int cpu) {
    char path[128];
    snprintf(path, sizeof(path), format, cpu);
    FILE * f = fopen(path, "re");
    if (!f) return -1;
    long value = -1;
    if (fscanf(f, "%ld", &value) != 1) value = -1;
    fclose(f);
    return value;
}

}  // namespace

// glibc raises, with each large block that is freed, the size from which on a block gets pages of its own, until buffers lie
// between what stays and cannot be given back: 5 MiB of an agent of 50. Named once, the size stays.
static void keep_large_blocks_apart() {
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

void llama_runtime_give_back() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

engine_status llama_runtime_start() {
    static std::once_flag once;
    static bool has_cpu = false;
    std::call_once(once, [] {
        keep_large_blocks_apart();
        llama_log_set(keep_errors, nullptr);
        ggml_backend_load_all_from_path(library_folder().c_str());
        llama_backend_init();
        has_cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr;
    });
    if (!has_cpu) return status_error(ENGINE_INTERNAL, "no CPU backend of llama.cpp found in %s", library_folder().c_str());
    return {};
}

std::string llama_runtime_version() {
    std::string variant = "cpu";
    dl_iterate_phdr(find_cpu_library, &variant);
    return std::string(LLAMA_RELEASE) + " " + variant;
}

std::string llama_runtime_errors() {
    std::lock_guard<std::mutex> lock(log_mutex);
    std::string out;
    std::swap(out, log_errors);
    while (!out.empty() && out.back() == '\n') out.pop_back();
    for (auto & c : out) {
        if (c == '\n') c = ' ';
    }
    return out;
}

int default_threads() {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
    std::set<std::pair<long, long>> cores;
    int logical = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        logical++;
        const long core = read_number("/sys/devices/system/cpu/cpu%d/topology/core_id", cpu);
        const long package = read_number("/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu);
        if (core >= 0) cores.insert({package, core});
    }
    const int physical = cores.empty() ? logical : int(cores.size());
    return physical > 2 ? physical - 1 : 1;
}
