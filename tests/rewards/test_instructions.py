"""instructions: what a row may look like, what is judged of a reply, and replies that are up to no good."""

import ast
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from grpo_kit.rewards import instructions
from grpo_kit.rewards.instructions import INSTRUCTIONS, instructions_reward, instructions_verdict
from grpo_kit.rewards.tools.calling import call_reward, call_rewards
from tests.rewards.test_instructions_kinds import KINDS, LANGUAGE_KINDS

TWO = ["punctuation:no_comma", "keywords:existence"]
TEA = [None, {"keywords": ["tea"]}]
ARGUMENTS = {name: kwargs for name, kwargs, *_ in KINDS}  # some usable arguments of each kind


def pay(reply, ids, kwargs, **columns):
    (paid,) = instructions_reward(completions=[reply], instruction_id_list=[ids], kwargs=[kwargs], **columns)
    return paid


def test_all_instructions_must_be_followed_or_the_share_is_paid():
    replies = ["Tea is hot.", "Tea, hot.", "Milk, hot."]
    columns = {"instruction_id_list": [TWO] * 3, "kwargs": [TEA] * 3}
    assert instructions_reward(replies, **columns) == [1.0, 0.0, 0.0]
    assert instructions_reward(replies, **columns, grading_mode="fraction") == [1.0, 0.5, 0.0]
    assert instructions_reward(replies, **columns, grading_mode=["fraction", None, "binary"]) == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match='grading_mode is \'half\'; it must be "binary" or "fraction". Write'):
        instructions_reward(replies, **columns, grading_mode="half")


def test_the_column_kwargs_arrives_as_trl_passes_it():
    batch = {
        "prompts": ["?"] * 2,
        "completions": [[{"role": "assistant", "content": text}] for text in ("Tea is hot.", "Tea, hot.")],
        "completion_ids": [[1]] * 2,
        "instruction_id_list": [TWO] * 2,
        "kwargs": [TEA] * 2,
        "trainer_state": None,
        "environments": [None] * 2,
    }
    assert call_reward(instructions_reward, **batch) == [1.0, 0.0]
    also = lambda completions, kwargs, **columns: [len(row) for row in kwargs]  # noqa: E731
    assert call_rewards([instructions_reward, also], **batch) == [[1.0, 0.0], [2.0, 2.0]]


@pytest.mark.parametrize(
    ("ids", "kwargs"),
    [
        (TWO, TEA),
        (tuple(TWO), tuple(TEA)),
        (json.dumps(TWO), json.dumps(TEA)),
        (repr(TWO), repr(TEA)),
        (np.array(TWO), np.array([None, {"keywords": np.array(["tea"])}])),
        (TWO, ["null", '{"keywords": ["tea"]}']),
        (TWO, [{}, {"keywords": ["tea"], "num_words": None, "relation": None}]),  # as a table fills it up
        (TWO, [{"prompt": "Make tea."}, {"keywords": ["tea"], "prompt": "Make tea."}]),
    ],
)
def test_a_row_is_read_in_each_form_of_the_public_sets(ids, kwargs):
    assert pay("Tea is hot.", ids, kwargs) == 1.0 and pay("Milk is hot.", ids, kwargs) == 0.0


UNUSABLE = [  # instruction_id_list, kwargs, what is wrong
    (None, None, "another reward's row"),
    ([], [], "no instruction"),
    ("", None, "no list"),
    ("punctuation:no_comma", [None], "a name outside a list"),
    ("__import__('os').getcwd()", None, "a call is no list"),
    ("[" * 100_000, None, "a list that never ends"),
    (json.dumps(["punctuation:no_comma"]) + " " * 1_000_000, None, "a text of more than a million characters"),
    ({"punctuation:no_comma": None}, None, "a mapping"),
    ([None], [None], "no name"),
    (["punctuation:no_tea"], [None], "an unknown name"),
    (["ratio:stop_words"], [{"percentage": 5}], "a kind that is left out"),
    (["punctuation:no_comma"], [None, None], "more kwargs than instructions"),
    (["punctuation:no_comma"], [["a"]], "kwargs that are a list"),
    (["punctuation:no_comma"], [{"keywords": ["tea"]}], "arguments of another kind"),
    (["keywords:existence"], None, "no kwargs"),
    (["keywords:existence"], [{}], "no keywords"),
    (["keywords:existence"], [{"keywords": []}], "an empty list"),
    (["keywords:existence"], [{"keywords": "tea"}], "a text for a list"),
    (["keywords:existence"], [{"keywords": ["tea", " "]}], "a blank keyword"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": 2}], "no relation"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": 2, "relation": "at most"}], "another relation"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": 2, "relation": ["at least"]}], "a list"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": -1, "relation": "at least"}], "less than nothing"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": 1.5, "relation": "at least"}], "a fraction"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": True, "relation": "at least"}], "a bool"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": "2", "relation": "at least"}], "a text"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": float("nan"), "relation": "at least"}], "NaN"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": float("inf"), "relation": "at least"}], "infinity"),
    (["keywords:frequency"], [{"keyword": "tea", "frequency": 10**400, "relation": "at least"}], "beyond all floats"),
    (["keywords:letter_frequency"], [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}], "two letters"),
    (["length_constraints:number_paragraphs"], [{"num_paragraphs": 0}], "no paragraph"),
    (
        ["length_constraints:nth_paragraph_first_word"],
        [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "tea"}],
        "the third of two",
    ),
    (["new:copy_span_idx"], [{"prompt_to_repeat": "tea", "n_start": 2, "n_end": 1}], "an end before its start"),
    (["new:copy_span_idx"], [{"prompt_to_repeat": "tea", "n_start": 7, "n_end": 9}], "a span behind the text"),
    (["new:copy_span_idx"], [{"prompt_to_repeat": "tea", "n_start": 1, "n_end": 9}], "a span that ends behind it"),
    (["count:count_increment_word"], [{"keyword1": "tea", "keyword2": "Tea"}], "one word, once and twice"),
    (["count:word_count_range"], [{"min_words": 5, "max_words": 2}], "at least five, at most two"),
    (["copy:repeat_phrase"], [{"phrase": "good tea", "small_n": 2}], "a phrase without a centre"),
    (["ratio:overlap"], [{"reference_text": "tea", "percentage": 101}], "more than all"),
    (["language:response_language"], [{"language": "klingon"}], "an unknown language"),
    (["punctuation:no_comma", "keywords:existence"], [None, None], "one instruction of two"),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "kwargs", "note"), UNUSABLE)
def test_a_row_that_cannot_be_judged_earns_none(ids, kwargs, note):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for reply in ("Tea is hot.", "", "a " * 5):
            assert pay(reply, ids, kwargs) is None, note
            assert pay(reply, ids, kwargs, grading_mode="fraction") is None, note


def test_every_argument_of_every_kind_is_needed_and_none_is_drawn_by_chance():
    for name, (_, readers) in INSTRUCTIONS.items():
        for missing in readers:
            kwargs = {key: value for key, value in ARGUMENTS[name].items() if key != missing}
            assert {pay("Tea is hot.", [name], [kwargs]) for _ in range(5)} == {None}, (name, missing)


def test_without_the_column_no_row_is_this_rewards():
    assert instructions_reward(["a", "b"], answer=["1", "2"]) == [None, None]
    assert instructions_reward(["a", "b"], [None, ["punctuation:no_comma"]], [None, [None]]) == [None, 1.0]
    assert instructions_reward(["a"], [["punctuation:no_comma"]]) == [1.0]  # which needs no kwargs
    with pytest.raises(ValueError, match="1 completions, 2 instruction lists, 1 kwargs.*needs its own. Pass"):
        instructions_reward(["a"], [TWO, TWO], [TEA])


EMPTY = [
    "", " \n\t", "...", "***", "[] <> \"\"", "</think>", "a long thought</think> \n", "\u200b\u202e", "<|im_end|>",
    None, [],
]  # fmt: skip


@pytest.mark.parametrize("reply", EMPTY)
def test_no_empty_reply_follows_any_instruction(reply):
    for name in set(INSTRUCTIONS) - LANGUAGE_KINDS:
        for mode in ("binary", "fraction"):
            assert pay(reply, [name], [ARGUMENTS[name]], grading_mode=mode) == 0.0, name
    assert instructions_verdict(reply, TWO, TEA).reason == "empty"


def test_reasons_say_what_happened_and_are_logged():
    verdicts = [
        instructions_verdict(reply, ids, TEA, prompt_opened_think=opened)
        for reply, ids, opened in [
            ("Tea", TWO, False),
            ("Tea, hot", TWO, False),
            ("Milk, hot", TWO, False),
            ("", TWO, False),
            ("tea " * 25_001, TWO, False),
            ("Tea", TWO, True),
            ("Tea", ["no:kind"], False),
        ]
    ]
    assert tuple(verdict.reason for verdict in verdicts) == instructions.INSTRUCTION_REASONS
    assert [sum(verdict.followed) for verdict in verdicts] == [2, 1, 0, 0, 0, 0, 0]
    assert verdicts[1].followed == (False, True)
    logged = {}
    columns = {"instruction_id_list": [TWO, None, TWO], "kwargs": [TEA, None, TEA], "log_metric": logged.__setitem__}
    assert instructions_reward(["Tea, hot", "42", ""], **columns) == [0.0, None, 0.0]
    assert {name: value for name, value in logged.items() if value} == {
        "instructions/partly_followed": 0.5,
        "instructions/empty": 0.5,
        "instructions/keywords:existence": 0.5,
    }
    assert logged["instructions/followed"] == logged["instructions/punctuation:no_comma"] == 0.0


def test_what_was_thought_is_not_judged():
    assert pay("One, two</think>Tea", TWO, TEA) == 1.0
    assert pay("tea</think>Milk", TWO, TEA) == 0.0
    assert pay("tea</think>Tea <think>and", TWO, TEA) == 0.0
    assert pay("Tea", TWO, TEA, prompt_opened_think=[True]) == 0.0
    assert pay([{"role": "assistant", "reasoning_content": "a, b", "content": "Tea"}], TWO, TEA) == 1.0
    assert pay("I like tea<|im_end|>", ["startend:end_checker"], [{"end_phrase": "tea"}]) == 1.0


SENTENCES = [
    ("Dr. Smith met Mr. X. He left!", ["Dr. Smith met Mr. X.", "He left!"]),
    ("i like cats. they purr.", ["i like cats.", "they purr."]),
    ("1. Buy milk. 2. Sell it.", ["1. Buy milk.", "2. Sell it."]),
    ("1. Buy\n2. Sell", ["1. Buy\n2. Sell"]),
    ("It was 2020. Then came 2021.", ["It was 2020.", "Then came 2021."]),
    ("At 5 p.m. the U.S. Army came, e.g. in fig. 3. See Jan. 5.",
     ["At 5 p.m. the U.S. Army came, e.g. in fig. 3.", "See Jan. 5."]),
    ("J. R. Smith had plan B. The other had none.", ["J. R. Smith had plan B.", "The other had none."]),
    ("Wait... what? No. Yes", ["Wait... what?", "No.", "Yes"]),
    ("Milk, tea, etc. Then cake, etc. and more.", ["Milk, tea, etc.", "Then cake, etc. and more."]),
    ('He said "Stop!" Then he "left."', ['He said "Stop!"', 'Then he "left."']),
    ("It costs 3.5 at a.b.com now?! Yes.", ["It costs 3.5 at a.b.com now?!", "Yes."]),
    (". . . Ok. !!!", [". . . Ok. !!!"]),
    ('* Add a splash!\n"', ['* Add a splash! "']),
    ("Ewing met George P. Smith on p. 5 of it.", ["Ewing met George P. Smith on p. 5 of it."]),
    ("猫がいる。犬もいる。", ["猫がいる。", "犬もいる。"]),
    ("नमस्ते। आप कैसे हैं?", ["नमस्ते।", "आप कैसे हैं?"]),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentences"), SENTENCES)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    assert list(instructions._split_sentences(text)) == sentences


def test_words_stand_between_spaces_without_their_punctuation():
    text = '*Tea*, don\'t well-known "hot." (x) $5 3.5! नमस्ते, _it_ -- C++ é́.'
    words = ["Tea", "don't", "well-known", "hot", "x", "5", "3.5", "नमस्ते", "it", "C", "é́"]
    assert list(instructions._split_words(text)) == words
    assert instructions._count_words("don't नमस्ते می‌روم 3.5") == 6


LANGUAGES = [
    ("en", "The weather was fine, so we walked along the river."),
    ("es", "El perro duerme junto a la ventana."), ("pt", "Não sei se amanhã vamos à praia."),
    ("ar", "ذهبت إلى السوق صباح اليوم واشتريت الخبز والحليب."),
    ("hi", "मैं कल अपने दोस्त के साथ बाज़ार गया था।"), ("fr", "Nous avons mangé du pain près de la rivière."),
    ("ru", "Вчера мы долго гуляли по парку и говорили о книгах."), ("de", "Der alte Baum steht vor dem Haus."),
    ("ja", "昨日は友達と公園を散歩しました。"), ("it", "Domani andremo in montagna se il tempo sarà bello."),
    ("bn", "আমি গতকাল বন্ধুর সাথে বাজারে গিয়েছিলাম।"), ("uk", "Вчора ми довго гуляли в парку й розмовляли."),
    ("th", "เมื่อวานนี้ฉันไปเดินเล่นที่สวนกับเพื่อน"), ("ur", "میں کل اپنے دوست کے ساتھ بازار گیا تھا۔"),
    ("ta", "நேற்று நான் என் நண்பருடன் பூங்காவில் நடந்தேன்."), ("te", "నిన్న నేను నా స్నేహితుడితో నడిచాను."),
    ("bg", "Вчера дълго се разхождахме в парка и говорехме."), ("ko", "어제 친구와 함께 공원을 산책했습니다."),
    ("pl", "Wczoraj długo spacerowaliśmy po parku."), ("he", "אתמול טיילנו בפארק ודיברנו על ספרים."),
    ("fa", "دیروز با دوستم در پارک قدم زدیم و درباره کتاب حرف زدیم."),
    ("vi", "Hôm qua tôi đi dạo trong công viên với bạn."),
    ("ne", "हिजो म साथीसँग बजार गएँ र हामीले फलफूल किन्यौं।"),
    ("sw", "Jana nilitembea katika bustani pamoja na rafiki yangu."),
    ("kn", "ನಿನ್ನೆ ನಾನು ನನ್ನ ಸ್ನೇಹಿತನೊಂದಿಗೆ ನಡೆದೆ."),
    ("mr", "काल मी माझ्या मित्रासोबत बाजारात गेलो आणि फळे घेतली."),
    ("gu", "ગઈકાલે હું મારા મિત્ર સાથે બજારમાં ગયો."), ("pa", "ਕੱਲ੍ਹ ਮੈਂ ਆਪਣੇ ਦੋਸਤ ਨਾਲ ਬਾਜ਼ਾਰ ਗਿਆ।"),
    ("ml", "ഇന്നലെ ഞാൻ എന്റെ സുഹൃത്തിനൊപ്പം നടന്നു."), ("fi", "Eilen kävelimme pitkään puistossa."),
]  # fmt: skip


def test_the_languages_of_the_public_rows_are_told_apart():
    pytest.importorskip("py3langid")
    for language, text in LANGUAGES:
        for other, _ in LANGUAGES:
            kwargs = [{"language": other}]
            assert pay(text, ["language:response_language"], kwargs) == (other == language), (language, other)


def test_a_long_reply_that_changes_its_language_breaks_the_instruction():
    pytest.importorskip("py3langid")
    english, german = ("Tea is hot and the cup is old. " * 12, "Der Tee ist heiß und die Tasse ist alt. " * 12)
    ids, kwargs = ["language:response_language"], [{"language": "en"}]
    assert pay(english + english, ids, kwargs) == 1.0
    assert pay(english + german, ids, kwargs) == pay(german + english, ids, kwargs) == 0.0
    for text, code in (("Yes.", "en"), ("OK", "en"), ("Guten Tag, 1 2 3", "de"), ("谢谢，我很好。", "zh-cn")):
        assert pay(text, ids, [{"language": code}]) == 1.0, text
    assert pay("1 2 3", ids, kwargs) == 0.0


def test_without_the_detector_such_rows_are_not_judged_and_one_warning_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    instructions._language_ranker.cache_clear()
    try:
        with pytest.warns(UserWarning, match="py3langid is not installed.*pip install py3langid") as caught:
            for name in LANGUAGE_KINDS:
                for _ in range(2):
                    assert pay("TEA IS HOT", [name], [ARGUMENTS[name]]) is None
        assert len(caught) == 1
        assert pay("Tea is hot.", TWO, TEA) == 1.0
    finally:
        instructions._language_ranker.cache_clear()


N = 30_000
HOSTILE = [
    "a" * 1_000_000, "\u202e" * 1_000_000, "a" * N, "word " * (N // 5), "." * N + "a", ". " * (N // 2) + "a",
    "Dr. " * (N // 4), "A b. " * (N // 5), "a" + "!" * N, "a!" * (N // 2), "[" * N + "a", "[a" * (N // 2),
    "[" + "a" * N, "[]" * (N // 2) + "a", "<<" * (N // 2) + "a", "<<a " * (N // 4), "<<" + "a" * N,
    "<i>" * (N // 3) + "a", "<i>" + "a" * (N - 3), "*" * N + "a", "*a" * (N // 2), "* a\n" * (N // 4), "*" + "a" * N,
    "*a" + " " * (N - 4) + "b", "**a** " * (N // 6), "* \n" * (N // 3) + "a", "***\n" * (N // 4) + "a",
    "******\n" * (N // 7) + "a", "a" + " " * (N - 2) + "b", "a" + "\n" * (N - 2) + "b",
    "a" + "\n " * (N // 2 - 2) + "b", "\t" * N + "a", "P.S.\n" * (N // 5), "P.S." + "!" * (N - 4), "P." * (N // 2),
    '"' * N + "a", "'" * N + "a", "' " * (N // 2) + "a", "“" * N + "a", "([{" * (N // 3) + "a",
    "(" * (N // 2) + ")" * (N // 2) + "a", '{"a":' * (N // 5), "[" * N + "1", "1" * N, "```" * (N // 3) + "a",
    "1. " * (N // 3), "1," * (N // 2), "a-" * (N // 2), ".-" * (N // 2) + "a", "a.-b" * (N // 4),
    "\u202ea\u202c\u2066" * (N // 4), "\u200b" * N + "a", "a\u200d" * (N // 2), "a" + "\u0301" * N,
    "😀" * (N // 2) + "a", "🇩🇪. " * (N // 4) + "a", "\ud800" * N + "a", "\0" * N + "a", "猫" * N, "猫。" * (N // 2),
    "ไ" * N, "नि " * (N // 3), "ا ، " * (N // 4), "a\r\n" * (N // 3), "Section 1\n" * (N // 10),
    "Section " + "9" * (N - 8), "Question 1:\n" * (N // 12), "A) a\n" * (N // 5), "ID,Country\n" * (N // 11),
    '"' + "a," * (N // 2), "My answer is yes." * (N // 17), "<think>" * (N // 7) + "</think>a",
    "</think>" * (N // 8) + "a", "<|im_end|>" * (N // 10), "tea " * (N // 4), "tea" * (N // 3),
    "the dog ran home " * (N // 17), "the " * (N // 4), "level " * (N // 6), "_" * N + "a", "a_" * (N // 2),
    "U.S. " * (N // 5), "e.g. " * (N // 5), "... " * (N // 4) + "a", "SEPARATOR " * (N // 10), "AB " * (N // 3),
    "Aa1!\n" * (N // 5), "ß" * N, "İ" * (N // 2), "\u2003" * N + "a", "\f\v" * (N // 2) + "a", "a\u2028" * (N // 2),
    "# " * (N // 2) + "a", "| a " * (N // 4), "http://a.b/c " * (N // 13), "__import__('os').abort()\n" * (N // 25),
    "x = 3\n" * (N // 6), "Zimbabwe\n" * (N // 9), "1796-04-12," * (N // 11), "ab bc cd " * (N // 9),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(HOSTILE), 25))
def test_no_reply_raises_or_takes_long(first):
    """All kinds at once take 0.1 s of processor time. A pattern that goes back over its text takes many seconds."""
    names = sorted(set(INSTRUCTIONS) - LANGUAGE_KINDS)
    for reply in HOSTILE[first : first + 25]:
        start = time.process_time()
        verdict = instructions_verdict(reply, names, [ARGUMENTS[name] for name in names], "fraction")
        assert len(verdict.followed) == len(names) and 0 <= verdict.reward < 1
        assert time.process_time() - start < 1.5, reply[:20]


def test_the_file_opens_nothing_and_executes_nothing():
    tree = ast.parse(Path(instructions.__file__).read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert called.isdisjoint({"open", "eval", "exec", "compile", "__import__", "getattr", "setattr"})
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported.isdisjoint({"os", "pathlib", "socket", "subprocess", "urllib", "random", "pickle"})
