import fc from 'fast-check';
import {
  canonical, isLabelKey, isLabelValue, type Labels, labelsOfSelector, parseSelector, printSelector, type Requirement, SELECTOR_BOUND, SelectorError, selectorMatches,
  selectorOfLabels,
} from './label-selector';

const keys = fc.constantFrom('class', 'region', 'in', 'notin', 'moefleet.io/site', 'a.b-c/d_e', 'X');
const values = fc.constantFrom('', 'eu', 'us', 'jetson-orin', '0.5', 'in');
const requirements: fc.Arbitrary<Requirement> = fc.oneof(
  fc.record({ op: fc.constantFrom('in' as const, 'notin' as const), key: keys, values: fc.array(values, { minLength: 1, maxLength: 4 }) }),
  fc.record({ op: fc.constantFrom('exists' as const, 'absent' as const), key: keys }),
);
const lists = fc.array(requirements, { minLength: 1, maxLength: 6 });
const labels = fc.dictionary(keys, values, { maxKeys: 6 });

/** Straight from Kubernetes' description, one label at a time. */
function slowMatches(list: readonly Requirement[], held: Labels): boolean {
  const entries = Object.entries(held);
  for (const requirement of list) {
    const own = entries.filter(([key]) => key === requirement.key).map(([, value]) => value);
    if (requirement.op === 'exists' && own.length === 0) return false;
    if (requirement.op === 'absent' && own.length > 0) return false;
    if (requirement.op === 'in' && !own.some((value) => requirement.values.filter((one) => one === value).length > 0)) return false;
    if (requirement.op === 'notin' && own.some((value) => requirement.values.filter((one) => one === value).length > 0)) return false;
  }
  return true;
}

test('what is printed reads back as the same selector, and is its own canonical text', () => {
  fc.assert(fc.property(lists, (list) => {
    const selector = canonical(list);
    const text = printSelector(selector);
    expect(parseSelector(text)).toEqual(selector);
    expect(printSelector(parseSelector(text))).toBe(text);
  }));
});

test('order, repetition and space make no difference', () => {
  fc.assert(fc.property(lists, fc.constantFrom('', ' ', ' \t '), (list, space) => {
    const shuffled = [...list, ...list].reverse().map((one) => printSelector([one]).replace(/[,()=!]+/g, (token) => `${space}${token}${space}`));
    expect(printSelector(parseSelector(shuffled.join(',')))).toBe(printSelector(canonical(list)));
  }));
});

test('holds for the same devices as the slow reading of the rules', () => {
  fc.assert(fc.property(lists, labels, (list, held) => {
    expect(selectorMatches(canonical(list), held)).toBe(slowMatches(list, held));
  }), { numRuns: 2000 });
});

test('any text is a selector or a SelectorError that points into it', () => {
  const alphabet = fc.constantFrom(...'ab=!(),in notin ./-_\t\u0000é😀'.split(''));
  const texts = fc.oneof(fc.string({ unit: 'binary', maxLength: 60 }), fc.string({ unit: alphabet, maxLength: 40 }));
  fc.assert(fc.property(texts, (text) => {
    try {
      expect(parseSelector(printSelector(parseSelector(text)))).toEqual(parseSelector(text));
    } catch (error) {
      expect(error).toBeInstanceOf(SelectorError);
      expect((error as SelectorError).position).toBeGreaterThanOrEqual(1);
      expect((error as SelectorError).position).toBeLessThanOrEqual(text.length + 1);
    }
  }), { numRuns: 5000 });
});

test('reads all that Kubernetes writes', () => {
  const selector = parseSelector('class==jetson-orin, region in (us,eu), !canary,tier!=dev,zone notin (b,a),gpu,note=');
  expect(printSelector(selector)).toBe('!canary,class=jetson-orin,gpu,note=,region in (eu,us),tier!=dev,zone notin (a,b)');
  const held = { class: 'jetson-orin', region: 'eu', gpu: '', note: '' };
  expect(selectorMatches(selector, held)).toBe(true);
  for (const other of [{ ...held, canary: '' }, { ...held, tier: 'dev' }, { ...held, zone: 'a' }, { ...held, region: 'asia' }]) expect(selectorMatches(selector, other)).toBe(false);
});

test.each([
  ['', 1, /a label key such as class, found the end/],
  ['class=a,', 9, /a label key such as class, found the end/],
  ['class a', 7, /expected "=".*found "a"/],
  ['class in eu', 10, /expected "\("/],
  ['class in (eu', 13, /expected "," or "\)", found the end/],
  ['class in ()', 11, /a label value, found "\)"/],
  ['!', 2, /a label key after "!"/],
  ['class=-a', 7, /a label value.*found "-a"/],
  ['a/b/c=d', 1, /a label key.*found "a\/b\/c"/],
  ['Upper.Case/x', 1, /found "Upper.Case\/x"/],
  ['class=a;drop', 8, /expected "," or the end, found ";"/],
  [`k=${'x'.repeat(64)}`, 3, /at most 63/],
])('%j is refused at character %d', (text, position, says) => {
  const failure = (() => { try { return parseSelector(text); } catch (error) { return error as SelectorError; } })() as SelectorError;
  expect(failure.position).toBe(position);
  expect(failure.message).toMatch(says);
});

test('oversized selectors are refused, whichever way they are large', () => {
  const many = (count: number, one: (at: number) => string) => Array.from({ length: count }, (_, at) => one(at)).join(',');
  expect(() => parseSelector(many(SELECTOR_BOUND.requirements, (at) => `k${at}`))).not.toThrow();
  expect(() => parseSelector(many(SELECTOR_BOUND.requirements + 1, (at) => `k${at}`))).toThrow(/at most 64 requirements/);
  expect(() => parseSelector(`k in (${many(SELECTOR_BOUND.values + 1, String)})`)).toThrow(/at most 256 values/);
  expect(() => parseSelector('k'.repeat(10_000_000))).toThrow(/at most 4096 characters, found 10000000 characters/);
});

test('exact labels and their selector are the same thing, whatever the keys are called', () => {
  const some: Labels[] = [{ class: 'phone', site: 'lab' }, { constructor: 'a' }, { toString: '' }];
  for (const held of some) {
    expect(labelsOfSelector(selectorOfLabels(held))).toEqual(held);
    expect(selectorMatches(selectorOfLabels(held), held)).toBe(true);
    expect(selectorMatches(selectorOfLabels(held), {})).toBe(false);
  }
  expect(labelsOfSelector(parseSelector('a=b,c'))).toBeNull();
  expect(labelsOfSelector(parseSelector('a=b,a=c'))).toBeNull();
});

test.each([['class', true], ['a.b/c', true], ['a/', false], ['/a', false], ['A/b', false], ['a..b/c', false], ['', false], ['x'.repeat(64), false], [`${'x'.repeat(63)}/y`, true], [`${'x'.repeat(64)}/y`, false]])(
  'label key %j: %s', (key, valid) => expect(isLabelKey(key)).toBe(valid));

test('an empty label value is a value', () => expect([isLabelValue(''), isLabelValue('a b'), isLabelValue('a')]).toEqual([true, false, true]));
