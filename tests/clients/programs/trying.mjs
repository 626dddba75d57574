// What the programs of Node share; trying.py has the same for Python.

import assert from "node:assert/strict";

export const [, , base, way, ...features] = process.argv;
export const HELLO = "please say hello", HELLO_SAID = "Hello there.";
export const WEATHER = "how is the weather in Paris", WEATHER_SAID = "It is 21 degrees in Paris.";
export const THOUGHT = "The tool will know.";
export const PLACE = "where does the tower stand";
export const PLACE_SAID = { city: "Paris", country: "France" };
export const AGAIN = "and say goodbye", AGAIN_SAID = "Goodbye.";
export const RESULT = "21 degrees";
export const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
export const GRAMMAR = 'start: "city: \\"" NAME "\\"\\n"\nNAME: /[A-Z][a-z]{0,8}/';
export const INPUT = /^city: "[A-Z][a-z]{0,8}"\n$/;
export const same = assert.deepEqual;
export const holds = assert.ok;

export async function run(functions) {
  for (const feature of features) {
    let error = null;
    try {
      await functions[feature]();
    } catch (e) {
      console.error(e);
      error = `${e.name}: ${e.message}`.split("\n")[0].slice(0, 300);
    }
    console.log(JSON.stringify({ feature, error }));
  }
}
