/* A stand-in for controller_interface of ros2_control, written for this example so that it compiles
 * without ROS 2. It is not ros2_control's: it has the shape of what policy_controller.hpp overrides and
 * uses, and no more. With ROS 2, include <controller_interface/controller_interface.hpp> instead. */
#ifndef CONTROLLER_INTERFACE_STAND_IN_HPP
#define CONTROLLER_INTERFACE_STAND_IN_HPP

#include <string>
#include <vector>

namespace rclcpp {

class Time {};

class Duration {
public:
    explicit Duration(double seconds) : seconds_(seconds) {}
    double seconds() const { return seconds_; }

private:
    double seconds_;
};

} /* namespace rclcpp */

namespace rclcpp_lifecycle {
class State {};
} /* namespace rclcpp_lifecycle */

namespace hardware_interface {

class LoanedCommandInterface {
public:
    void set_value(double value) { value_ = value; }
    double get_value() const { return value_; }

private:
    double value_ = 0.0;
};

using LoanedStateInterface = LoanedCommandInterface;

} /* namespace hardware_interface */

namespace controller_interface {

enum class return_type { OK, ERROR };
enum class CallbackReturn { SUCCESS, FAILURE, ERROR };
enum class interface_configuration_type { ALL, INDIVIDUAL, NONE };

struct InterfaceConfiguration {
    interface_configuration_type type = interface_configuration_type::NONE;
    std::vector<std::string> names;
};

class ControllerInterface {
public:
    virtual ~ControllerInterface() = default;
    virtual InterfaceConfiguration command_interface_configuration() const = 0;
    virtual InterfaceConfiguration state_interface_configuration() const = 0;
    virtual CallbackReturn on_init() = 0;
    virtual CallbackReturn on_configure(const rclcpp_lifecycle::State &) = 0;
    virtual CallbackReturn on_activate(const rclcpp_lifecycle::State &) = 0;
    virtual CallbackReturn on_deactivate(const rclcpp_lifecycle::State &) = 0;
    virtual return_type update(const rclcpp::Time &, const rclcpp::Duration &) = 0;

    std::vector<hardware_interface::LoanedCommandInterface> command_interfaces_;
    std::vector<hardware_interface::LoanedStateInterface> state_interfaces_;
};

} /* namespace controller_interface */

#endif
