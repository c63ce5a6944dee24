// Steps a policy ten times a second on what a sensor shows.
#include <Arduino.h>
#include <stategate.hpp>

static stategate::Session session;
static stategate_inputs in;

void setup()
{
    Serial.begin(115200);
    if (!session.initialised()) {
        Serial.println(session.initialised().name());
    }
}

void loop()
{
    for (float &value : stategate::view(in.z)) {
        value = static_cast<float>(analogRead(A0)) / 512.0f - 1.0f;
    }
    if (const auto answer = session.step(in)) {
        Serial.println(stategate::view(answer->action).at<0>(), 6);
    } else {
        Serial.println(answer.result().name());
    }
    delay(100);
}
