/* In place of a controller manager: configures, activates and updates a hundred times, then once with a
 * sensor that shows NaN, and prints the first command of each update. */
#include <cstdio>
#include <limits>

#include "policy_controller.hpp"

int main()
{
    PolicyController controller;
    const rclcpp_lifecycle::State state;
    const bool good = controller.on_init() == controller_interface::CallbackReturn::SUCCESS
        && controller.on_configure(state) == controller_interface::CallbackReturn::SUCCESS;
    controller.state_interfaces_.resize(controller.state_interface_configuration().names.size());
    controller.command_interfaces_.resize(controller.command_interface_configuration().names.size());
    if (!good || controller.on_activate(state) != controller_interface::CallbackReturn::SUCCESS) {
        std::fputs("not activated\n", stderr);
        return 1;
    }
    unsigned count = 0;
    for (int turn = 0; turn < 103; ++turn) {
        for (auto &joint : controller.state_interfaces_) {
            joint.set_value(static_cast<double>(count++ * 7919u % 1024u) / 512.0 - 1.0);
        }
        if (turn >= 100) {
            controller.state_interfaces_[0].set_value(std::numeric_limits<double>::quiet_NaN());
        }
        const auto result = controller.update(rclcpp::Time(), rclcpp::Duration(0.01));
        const bool stopped = result != controller_interface::return_type::OK;
        std::printf("%.6f%s\n", controller.command_interfaces_[0].get_value(), stopped ? " stopped" : "");
    }
    return 0;
}
