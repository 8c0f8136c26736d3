"""Makes the expected outputs of the chat template tests with jinja2, set up as transformers does.

Usage: golden.py TEMPLATE_FOLDER DEMO_TOKENIZER_CONFIG
Writes models.json (templates of models, by file name) and language.json (own templates).
"""
import datetime, json, os, sys
import jinja2, jinja2.ext, jinja2.nodes, jinja2.sandbox

HERE = os.path.dirname(os.path.abspath(__file__))


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime(2026, 3, 5, 7, 8, 9).strftime(format)


env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = strftime_now


def expect(template, context):
    try:
        return {"expected": env.from_string(template).render(**context)}
    except Exception as e:
        return {"error": type(e).__name__ + ": " + str(e)}


def user(text): return {"role": "user", "content": text}
def assistant(text): return {"role": "assistant", "content": text}
def system(text): return {"role": "system", "content": text}


TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather <now> & \"later\" in a city; caf\u00e9",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "City"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7.5, "default": None},
        "exact": {"type": "boolean", "default": True, "enum": []}}, "required": ["city"]}}}
TOOL2 = {"name": "noop", "parameters": {}}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "id": "c1", "function": {"name": "get_weather", "arguments": {"city": "K\u00f6ln", "days": 2}}}]}
CALL_NONE = {"role": "assistant", "content": None, "tool_calls": CALL["tool_calls"]}
CALL_STRING = {"role": "assistant", "content": "Let me see.", "tool_calls": [
    {"type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"X\"}"}}]}
CALL_TWO = {"role": "assistant", "content": "", "tool_calls": CALL["tool_calls"] + CALL_STRING["tool_calls"]}
RESULT = {"role": "tool", "name": "get_weather", "content": "{\"temp\": 21}"}
RESULT_MAP = {"role": "tool", "name": "get_weather", "content": {"temp": 21.5, "ok": True, "x": None, "l": [1, []]}}

CONVERSATIONS = {
    "empty": [],
    "one": [user("Hello!")],
    "blank": [user("")],
    "system": [system("You are terse."), user("Hi")],
    "turns": [user("Hi"), assistant("Hello."), user("And?")],
    "long": [system("S"), user("1"), assistant("2"), user("3"), assistant("4"), user("5")],
    "space": [system("  \n lead and trail \t\n"), user("\n\n  a  \n"), assistant(" b\r\n"), user("c ")],
    "unicode": [user("\u4f60\u597d \U0001f600 e\u0301 \u202e \u00a0x\u00a0"), assistant("\u00df\u0130"), user("\u3000")],
    "braces": [user("{{ 7 * 7 }} {% if x %} <|im_end|> {# c #} \\n \"q\" 'q'")],
    "think": [user("q"), assistant("<think>\nhm\n</think>\n\nanswer"), user("r")],
    "think-last": [user("q"), assistant("<think>\nhm\n</think>\n\nanswer")],
    "reasoning": [user("q"), {"role": "assistant", "content": "a", "reasoning_content": "because"}, user("r"),
                  {"role": "assistant", "content": "b", "reasoning_content": "\nwhy\n"}],
    "call": [user("Weather?"), CALL, RESULT],
    "call-none": [user("Weather?"), CALL_NONE, RESULT, assistant("21")],
    "call-string": [system("S"), user("Weather?"), CALL_STRING, RESULT, assistant("21"), user("thanks")],
    "call-two": [user("Weather?"), CALL_TWO, RESULT, RESULT, assistant("ok")],
    "call-map": [user("Weather?"), CALL, RESULT_MAP],
    "bad-order": [assistant("I begin"), user("no")],
    "two-users": [user("a"), user("b")],
    "odd-role": [{"role": "narrator", "content": "..."}],
    "system-late": [user("a"), system("late"), user("b")],
    "no-content": [{"role": "user"}],
}
VARIANTS = {
    "plain": {}, "prompt": {"add_generation_prompt": True},
    "tools": {"tools": [TOOL, TOOL2], "add_generation_prompt": True},
    "tools-system": {"tools": [TOOL], "tools_in_user_message": False, "add_generation_prompt": False},
    "builtin": {"builtin_tools": ["brave_search", "code_interpreter", "get_weather"], "add_generation_prompt": True},
    "nothink": {"add_generation_prompt": True, "enable_thinking": False, "date_string": "1 Jan 2030"},
    "tools-none": {"tools": None, "add_generation_prompt": True},
}


def models(folder, demo):
    templates = {name: open(os.path.join(folder, name), newline="").read()
                 for name in sorted(os.listdir(folder)) if name.endswith(".jinja")}
    templates["demo"] = json.load(open(demo))["chat_template"]
    cases = []
    for name, template in templates.items():
        for title, messages in CONVERSATIONS.items():
            for variant, more in VARIANTS.items():
                context = {"messages": messages, "bos_token": "<bos>", "eos_token": "<eos>", **more}
                cases.append({"template": name, "conversation": title, "variant": variant, **expect(template, context)})
    return {"conversations": CONVERSATIONS, "variants": VARIANTS, "cases": cases}


def language():
    cases = []
    context = {
        "s": "Hello World", "u": "\u4f60\U0001f600e\u0301", "n": 7, "neg": -3, "f": 2.5, "t": True, "no": False, "none_value": None,
        "l": [3, 1, 2], "words": ["b", "A", "c"], "empty": [], "d": {"b": 1, "a": [1, {"x": "y"}], "items": 5},
        "people": [{"name": "Ann", "age": 31, "tags": ["x"]}, {"name": "bob", "age": 5}, {"name": "Cy", "age": 31, "tags": []}],
        "text": "  one\n two\r\n\n three  "}
    source = open(os.path.join(HERE, "language.txt"), encoding="utf-8").read()
    for template in source.split("\n=====\n"):
        cases.append({"template": template, **expect(template, context)})
    return {"context": context, "cases": cases}


json.dump(models(sys.argv[1], sys.argv[2]), open(os.path.join(HERE, "models.json"), "w"), ensure_ascii=True, indent=1)
json.dump(language(), open(os.path.join(HERE, "language.json"), "w"), ensure_ascii=True, indent=1)
