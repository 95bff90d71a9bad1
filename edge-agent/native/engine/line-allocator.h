// For vectors whose elements begin with a cache line: to access two lines at once takes twice as long.
#pragma once

#include <cstddef>
#include <new>

template <class T>
struct line_allocator {
    typedef T value_type;
    line_allocator() = default;
    template <class U>
    line_allocator(const line_allocator<U> &) {}
    T * allocate(size_t n) { return static_cast<T *>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T * p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const line_allocator &) const { return true; }
    bool operator!=(const line_allocator &) const { return false; }
};
