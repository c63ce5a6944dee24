/* A controller in the shape of ros2_control that steps a bundle: joints in, commands out.
 *
 * update() allocates nothing, takes no lock and makes no system call. A step that is refused leaves the
 * commands as they were; after three in a row the controller manager is told, and stops it.
 */
#ifndef POLICY_CONTROLLER_HPP
#define POLICY_CONTROLLER_HPP

#include <cstddef>
#include <string>

#include "controller_interface.hpp"
#include "stategate.hpp"

class PolicyController : public controller_interface::ControllerInterface {
    using Callback = controller_interface::CallbackReturn;
    using Result = controller_interface::return_type;
    static constexpr std::size_t inputs = sizeof(stategate_inputs::z) / sizeof(float);
    static constexpr std::size_t commands = sizeof(stategate_outputs::action) / sizeof(float);
    static constexpr int most_refusals = 3;

public:
    Callback on_init() override { return Callback::SUCCESS; }

    Callback on_configure(const rclcpp_lifecycle::State &) override
    {
        return session_.initialised() ? Callback::SUCCESS : Callback::ERROR;
    }

    controller_interface::InterfaceConfiguration state_interface_configuration() const override
    {
        return names_of("observation", inputs);
    }

    controller_interface::InterfaceConfiguration command_interface_configuration() const override
    {
        return names_of("joint", commands);
    }

    Callback on_activate(const rclcpp_lifecycle::State &) override
    {
        const bool fits = state_interfaces_.size() == inputs && command_interfaces_.size() == commands;
        refusals_ = 0;
        return fits && session_.reset() ? Callback::SUCCESS : Callback::ERROR; /* an episode begins */
    }

    Callback on_deactivate(const rclcpp_lifecycle::State &) override { return Callback::SUCCESS; }

    Result update(const rclcpp::Time &, const rclcpp::Duration &period) override
    {
#ifdef STATEGATE_RESET_IDLE_SECONDS
        if (!session_.idle(period.seconds())) {
            return Result::ERROR;
        }
#else
        static_cast<void>(period);
#endif
        std::size_t i = 0;
        for (float &value : stategate::view(in_.z)) {
            value = static_cast<float>(state_interfaces_[i++].get_value());
        }
        const auto answer = session_.step(in_);
        if (!answer) {
            refusals_ += 1;
            return refusals_ < most_refusals ? Result::OK : Result::ERROR;
        }
        refusals_ = 0;
        i = 0;
        for (const float value : stategate::view(answer->action)) {
            command_interfaces_[i++].set_value(static_cast<double>(value));
        }
        return Result::OK;
    }

private:
    static controller_interface::InterfaceConfiguration names_of(const char *what, std::size_t count)
    {
        controller_interface::InterfaceConfiguration names;
        names.type = controller_interface::interface_configuration_type::INDIVIDUAL;
        for (std::size_t i = 0; i < count; ++i) {
            names.names.push_back(std::string(what) + std::to_string(i) + "/position");
        }
        return names;
    }

    stategate::Session session_;
    stategate_inputs in_{};
    int refusals_ = 0;
};

#endif
