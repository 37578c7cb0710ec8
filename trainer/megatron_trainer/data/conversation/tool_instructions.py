"""What the system prompt tells the model about tools, for each agent_template that writes calls into the answer.

{tools}: a JSON object for each function, {names}: their names.
"""

from collections.abc import Mapping

_REACT_EN = """These tools are at your disposal:

{tools}

Work towards the answer in steps of this form:

Thought: what the state of things is, and what to do next
Action: the name of a tool, out of [{names}]
Action Input: the tool's arguments as a JSON object
Observation: what the tool returned

Repeat these lines as often as necessary. Then close with:

Thought: why the question can be answered now
Final Answer: the answer to the question"""

_REACT_ZH = """可供使用的工具：

{tools}

请用下列格式分步完成任务：

Thought: 说明目前的情况和下一步的打算
Action: 要用的工具，名称须出自[{names}]
Action Input: 工具的参数，写成 JSON 对象
Observation: 工具给出的结果

这些行可视需要重复。最后写：

Thought: 说明为什么已能回答
Final Answer: 问题的答案"""

_TOOLBENCH = """Solve the user's task by calling functions. In each step write a short thought and one call:

Thought: what you conclude so far
Action: the name of a function, out of [{names}]
Action Input: its arguments as a JSON object

The result follows, and the next step begins from there; no step can be undone. If there is a function named Finish, end
with a call of it: the user sees only what it is given as the final answer; it also serves to give up and start over.

Functions:

{tools}"""

_QWEN_EN = """# Tools

These tools are at your disposal:

{tools}

{how} Write into your answer:

✿FUNCTION✿: the name of a tool, out of [{names}]
✿ARGS✿: its arguments as a JSON object
✿RESULT✿: what the tool returned
✿RETURN✿: your answer, based on the results"""

_QWEN_ZH = """# 工具

可供使用的工具：

{tools}

{how}请在回答中写：

✿FUNCTION✿: 要用的工具，名称须出自[{names}]
✿ARGS✿: 工具的参数，写成 JSON 对象
✿RESULT✿: 工具给出的结果
✿RETURN✿: 根据结果作出的回答"""

INSTRUCTIONS: Mapping[str, str] = {
    "react_en": _REACT_EN,
    "react_zh": _REACT_ZH,
    "toolbench": _TOOLBENCH,
    "qwen_en": _QWEN_EN.replace("{how}", "Call one whenever it helps."),
    "qwen_en_parallel": _QWEN_EN.replace(
        "{how}", "Several calls may come one after the other; their results follow in the same order."
    ),
    "qwen_zh": _QWEN_ZH.replace("{how}", "需要时即可调用。"),
    "qwen_zh_parallel": _QWEN_ZH.replace("{how}", "可以连续调用多个工具，结果按同样的顺序给出。"),
}
