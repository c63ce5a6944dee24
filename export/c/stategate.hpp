/* The session of stategate.h for C++17 and later: nothing is allocated, thrown or looked up at run time.
 *
 *     static stategate::Session session;          // the constructor calls init; copies and moves are refused
 *     stategate_inputs in{};
 *     stategate::view(in.x).fill(0.0f);           // one line for each member; its length is known when compiling
 *     if (const auto answer = session.step(in)) {
 *         act(stategate::view(answer->action));   // without an answer there is nothing to act on
 *     } else {
 *         hold(answer.result().name());
 *     }
 */
#ifndef STATEGATE_HPP
#define STATEGATE_HPP

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#if __cplusplus >= 202002L
#include <span>
#endif

#include "stategate.h"

namespace stategate {

/* N elements of somebody else's array, as std::span<T, N> of C++20, which it becomes by itself. */
template <class T, std::size_t N>
class View {
public:
    using element_type = T;
    using value_type = std::remove_cv_t<T>;
    using iterator = T *;

    constexpr explicit View(T (&array)[N]) noexcept : data_(array) {}

#if __cplusplus >= 202002L
    constexpr operator std::span<T, N>() const noexcept { return std::span<T, N>(data_, N); }
#endif

    static constexpr std::size_t size() noexcept { return N; }
    constexpr T *data() const noexcept { return data_; }
    constexpr T *begin() const noexcept { return data_; }
    constexpr T *end() const noexcept { return data_ + N; }

    /* An element by a number that only the run knows; looked at where assert is. */
    constexpr T &operator[](std::size_t index) const noexcept
    {
        assert(index < N);
        return data_[index];
    }

    /* An element by a number that the compiler looks at, such as an enumerator of stategate.h. */
    template <std::size_t Index>
    constexpr T &at() const noexcept
    {
        static_assert(Index < N, "the array has no such element");
        return data_[Index];
    }

    constexpr void fill(value_type value) const noexcept
    {
        for (std::size_t i = 0; i < N; ++i) {
            data_[i] = value;
        }
    }

    /* From another array of the same length; of another length it does not compile. */
    template <class From>
    constexpr void copy(View<From, N> from) const noexcept
    {
        static_assert(std::is_same_v<std::remove_cv_t<From>, value_type>, "another type of element");
        for (std::size_t i = 0; i < N; ++i) {
            data_[i] = from.data()[i];
        }
    }

private:
    T *data_;
};

template <class T, std::size_t N>
constexpr View<T, N> view(T (&array)[N]) noexcept
{
    return View<T, N>(array);
}

/* What a call answered; it must be looked at. */
class [[nodiscard]] Result {
public:
    constexpr explicit Result(stategate_result code) noexcept : code_(code) {}

    /* Whether it was done. */
    constexpr explicit operator bool() const noexcept { return code_ >= 0; }
    constexpr stategate_result code() const noexcept { return code_; }

    /* In words, for a log. */
    constexpr const char *name() const noexcept
    {
        switch (code_) {
        case STATEGATE_QUIET: return "done, nothing written";
        case STATEGATE_WROTE: return "written";
        case STATEGATE_HELD: return "a write was held back";
        case STATEGATE_BAD_INPUT: return "NaN or infinity in an input";
        case STATEGATE_FAULT: return "NaN or infinity in a gate or next state";
        case STATEGATE_BAD_OUTPUT: return "NaN or infinity in an output";
        case STATEGATE_NO_POINTER: return "a pointer is NULL";
        case STATEGATE_UNALIGNED: return "a pointer is not aligned";
        case STATEGATE_NOT_READY: return "the session was not initialised";
        case STATEGATE_OTHER_MODEL: return "program, library and save are not of one bundle";
        case STATEGATE_DAMAGED: return "a save is damaged";
        case STATEGATE_IMPOSSIBLE: return "a save holds what no session can have";
        case STATEGATE_NOT_KEPT: return "so many steps cannot be taken back";
        }
        return "unknown";
    }

private:
    stategate_result code_;
};

/* What a step answered: its outputs, or none where they are no answer. */
class [[nodiscard]] Answer {
public:
    constexpr Answer(Result result, const stategate_outputs &outputs) noexcept
        : result_(result), outputs_(&outputs)
    {
    }

    constexpr explicit operator bool() const noexcept { return static_cast<bool>(result_); }
    constexpr Result result() const noexcept { return result_; }
    constexpr bool wrote() const noexcept { return result_.code() == STATEGATE_WROTE; }
    constexpr bool held() const noexcept { return result_.code() == STATEGATE_HELD; }

    /* Outputs and gates, until the next step; only of an answer that is true. */
    constexpr const stategate_outputs &operator*() const noexcept
    {
        assert(result_);
        return *outputs_;
    }
    constexpr const stategate_outputs *operator->() const noexcept { return &**this; }

private:
    Result result_;
    const stategate_outputs *outputs_;
};

/* Room for one save. */
struct Saved {
    unsigned char bytes[STATEGATE_SAVED_BYTES];
};

#if STATEGATE_ROWS > 0
/* Room for what it takes to take steps back; it must outlive the session that uses it. */
struct KeptSteps {
    alignas(64) unsigned char bytes[STATEGATE_KEPT_BYTES > 0u ? STATEGATE_KEPT_BYTES : 1u];
};
#endif

/* One stream with its memory and its outputs. It stays where it is: budgets point at it, so it is
 * neither copied nor moved; a memory goes to another session by save and load. Not thread-safe. */
class Session {
public:
    Session() noexcept : initialised_(stategate_init(&session_)) {}
    ~Session() noexcept { session_.ready = 0u; } /* a later call is refused, not undefined */

    Session(const Session &) = delete;
    Session(Session &&) = delete;
    Session &operator=(const Session &) = delete;
    Session &operator=(Session &&) = delete;

    /* Of the constructor; every call of a session that is not ready is refused. */
    Result initialised() const noexcept { return Result(initialised_); }

    Answer step(const stategate_inputs &inputs) noexcept
    {
#if STATEGATE_ROWS > 0
        if (limits_bytes_) {
            return Answer(
                Result(stategate_step_within(&budget_, &session_, &inputs, &outputs_)), outputs_);
        }
#endif
        return Answer(Result(stategate_step(&session_, &inputs, &outputs_)), outputs_);
    }

    /* What the last step left, whatever it answered: after a fault, what the bundle declares safe,
     * and of an output without such a value nothing to act on. */
    const stategate_outputs &safe_outputs() const noexcept { return outputs_; }

    Result reset() noexcept { return Result(stategate_reset(&session_)); }

#ifdef STATEGATE_RESET_IDLE_SECONDS
    /* Before a step, with the seconds since the last one. */
    Result idle(double seconds) noexcept { return Result(stategate_idle(&session_, seconds)); }
#endif

    /* `may_write()` is asked before each step; it must outlive the session. */
    template <class Permit>
    void limit_writes(Permit &may_write) noexcept
    {
        static_assert(std::is_same_v<decltype(may_write()), bool>, "it must answer true or false");
        limit_bytes_no_more();
        session_.user = static_cast<void *>(&may_write);
        session_.may_write = [](void *user) -> bool { return (*static_cast<Permit *>(user))(); };
    }

    void limit_no_more() noexcept
    {
        limit_bytes_no_more();
        session_.may_write = nullptr;
        session_.user = nullptr;
    }

#if STATEGATE_ROWS > 0
    /* Bytes appended and folded in 1,000 steps, 0 for no limit; in place of limit_writes. */
    void limit_bytes(double appended, double folded) noexcept
    {
        stategate_budget_init(&budget_, appended, folded);
        limits_bytes_ = true;
    }

    Result keep_steps(KeptSteps &room) noexcept
    {
        return Result(stategate_keep_steps(&session_, room.bytes, sizeof room.bytes));
    }

    Result rewind(std::uint32_t steps) noexcept { return Result(stategate_rewind(&session_, steps)); }

    std::uint32_t rows_held() const noexcept { return stategate_rows_held(&session_); }
#endif

    /* Counters and states; false of a session that is not ready. */
    [[nodiscard]] bool save(Saved &saved) const noexcept
    {
        return stategate_save(&session_, saved.bytes, sizeof saved.bytes) == sizeof saved.bytes;
    }

    Result load(const Saved &saved) noexcept { return load(saved.bytes, sizeof saved.bytes); }

    /* The same of bytes whose number is not known to be right, such as a file's. */
    Result load(const void *saved, std::size_t bytes) noexcept
    {
        return Result(stategate_load(&session_, saved, bytes));
    }

    const stategate_counters &counters() const noexcept { return session_.counters; }
    std::uint64_t chain(std::uint64_t before) const noexcept
    {
        return stategate_chain(&session_, before);
    }
    static std::size_t state_bytes() noexcept { return stategate_state_bytes(); }

    /* For functions of C. */
    stategate_session *c() noexcept { return &session_; }

private:
    void limit_bytes_no_more() noexcept
    {
#if STATEGATE_ROWS > 0
        limits_bytes_ = false;
#endif
    }

    stategate_session session_;
    stategate_outputs outputs_{};
    stategate_result initialised_;
#if STATEGATE_ROWS > 0
    stategate_byte_budget budget_{};
    bool limits_bytes_ = false;
#endif
};

} /* namespace stategate */

#endif
