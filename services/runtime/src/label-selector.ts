/**
 * Label selectors, as Kubernetes writes them: `class=jetson-orin,region in (eu,us),!canary,tier!=dev,zone notin (a,b),gpu`.
 * The one place that reads, prints and applies them; the command line reads a selector for its errors, the coordinator
 * reads it again. Every requirement must hold. As in Kubernetes, `!=` and `notin` hold for a device without the label.
 *
 *   selector    = requirement { "," requirement }
 *   requirement = key | "!" key | key ("=" | "==" | "!=") [value] | key ("in" | "notin") "(" [value] { "," [value] } ")"
 *
 * A parsed selector is in canonical form: requirements sorted and each once, values sorted and each once, `in` and
 * `notin` of one value written as `=` and `!=`. So two texts mean the same group if they print the same.
 */

export type Requirement =
  | { readonly op: 'in' | 'notin'; readonly key: string; readonly values: readonly string[] }
  | { readonly op: 'exists' | 'absent'; readonly key: string };

/** In canonical order; empty: every device. */
export type Selector = readonly Requirement[];

export type Labels = Readonly<Record<string, string>>;

/** Characters, requirements and values that a selector may have: it is a key in Redis and is applied to every device. */
export const SELECTOR_BOUND = { characters: 4096, requirements: 64, values: 256 } as const;

const NAME = /^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/;
const PREFIX = /^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$/;
const WORD = /[A-Za-z0-9._/-]+/y;

/** `class` or `site.example/room`: at most 63 characters after an optional DNS name and a slash. */
export function isLabelKey(text: string): boolean {
  const slash = text.indexOf('/');
  return NAME.test(text.slice(slash + 1)) && (slash === -1 || PREFIX.test(text.slice(0, slash)));
}

/** At most 63 characters; empty is a value. */
export function isLabelValue(text: string): boolean {
  return text === '' || NAME.test(text);
}

/** A text that is no selector: says where (from 1) and what was expected there. */
export class SelectorError extends Error {
  override readonly name = 'SelectorError';
  constructor(readonly position: number, readonly expected: string, found: string) {
    super(`at character ${position}: expected ${expected}, found ${found}`);
  }
}

/** At least one requirement. Throws SelectorError. */
export function parseSelector(text: string): Selector {
  if (text.length > SELECTOR_BOUND.characters) {
    throw new SelectorError(SELECTOR_BOUND.characters + 1, `the end of a selector of at most ${SELECTOR_BOUND.characters} characters`, `${text.length} characters`);
  }
  return new Parser(text).selector();
}

/** The canonical text; '' for a selector without requirements. */
export function printSelector(selector: Selector): string {
  return selector.map(printRequirement).join(',');
}

/** A selector of exact values in canonical form. The labels must be valid. */
export function selectorOfLabels(labels: Labels): Selector {
  return canonical(Object.entries(labels).map(([key, value]) => ({ op: 'in', key, values: [value] })));
}

/** The exact values it asks for, where it asks for nothing else; null otherwise. */
export function labelsOfSelector(selector: Selector): Record<string, string> | null {
  const labels: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const requirement of selector) {
    if (requirement.op !== 'in' || requirement.values.length !== 1 || requirement.key in labels) return null;
    labels[requirement.key] = requirement.values[0]!;
  }
  return { ...labels };
}

export function selectorMatches(selector: Selector, labels: Labels): boolean {
  return selector.every((requirement) => {
    const value = Object.hasOwn(labels, requirement.key) ? labels[requirement.key] : undefined;
    switch (requirement.op) {
      case 'exists': return value !== undefined;
      case 'absent': return value === undefined;
      case 'in': return value !== undefined && requirement.values.includes(value);
      case 'notin': return value === undefined || !requirement.values.includes(value);
    }
  });
}

/** Sorted, each once. */
export function canonical(requirements: readonly Requirement[]): Selector {
  const byText = new Map(requirements.map((requirement): [string, Requirement] => {
    const sorted = 'values' in requirement ? { ...requirement, values: [...new Set(requirement.values)].sort() } : requirement;
    return [printRequirement(sorted), sorted];
  }));
  const order = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);
  return [...byText].sort(([textA, a], [textB, b]) => order(a.key, b.key) || order(textA, textB)).map(([, requirement]) => requirement);
}

function printRequirement(requirement: Requirement): string {
  if (!('values' in requirement)) return `${requirement.op === 'absent' ? '!' : ''}${requirement.key}`;
  const { op, key, values } = requirement;
  if (values.length === 1) return `${key}${op === 'in' ? '=' : '!='}${values[0]!}`;
  return `${key} ${op} (${values.join(',')})`;
}

/** Reads left to right with one character of look-ahead; `at` is where the next token begins. */
class Parser {
  private at = 0;

  constructor(private readonly text: string) {}

  selector(): Selector {
    const requirements: Requirement[] = [];
    do {
      requirements.push(this.requirement());
      if (requirements.length > SELECTOR_BOUND.requirements) this.fail(`at most ${SELECTOR_BOUND.requirements} requirements`);
    } while (this.take(','));
    if (!this.atEnd()) this.fail('"," or the end');
    return canonical(requirements);
  }

  private requirement(): Requirement {
    if (this.take('!')) return { op: 'absent', key: this.key('a label key after "!"') };
    const key = this.key('a label key such as class');
    if (this.take('!=')) return { op: 'notin', key, values: [this.value()] };
    if (this.take('==') || this.take('=')) return { op: 'in', key, values: [this.value()] };
    if (this.atEnd() || this.peek() === ',') return { op: 'exists', key };
    const from = this.at;
    const op = this.word();
    if (op === 'in' || op === 'notin') return { op, key, values: this.values() };
    this.at = from;
    return this.fail('"=", "!=", "in (…)", "notin (…)", "," or the end');
  }

  private values(): string[] {
    if (!this.take('(')) this.fail('"("');
    if (this.peek() === ')') this.fail('a label value');
    const values: string[] = [];
    do {
      values.push(this.value());
      if (values.length > SELECTOR_BOUND.values) this.fail(`at most ${SELECTOR_BOUND.values} values`);
    } while (this.take(','));
    if (!this.take(')')) this.fail('"," or ")"');
    return values;
  }

  private key(expected: string): string {
    this.skipSpace();
    const from = this.at;
    const key = this.word();
    if (isLabelKey(key)) return key;
    this.at = from;
    return this.fail(expected);
  }

  private value(): string {
    this.skipSpace();
    const from = this.at;
    const value = this.word();
    if (isLabelValue(value)) return value;
    this.at = from;
    return this.fail('a label value of at most 63 letters, digits, ".", "_" and "-", a letter or digit first and last');
  }

  /** '' where none begins here. */
  private word(): string {
    this.skipSpace();
    WORD.lastIndex = this.at;
    const word = WORD.exec(this.text)?.[0] ?? '';
    this.at += word.length;
    return word;
  }

  private take(token: string): boolean {
    this.skipSpace();
    if (!this.text.startsWith(token, this.at)) return false;
    this.at += token.length;
    return true;
  }

  private peek(): string {
    this.skipSpace();
    return this.text.charAt(this.at);
  }

  private atEnd(): boolean {
    return this.peek() === '';
  }

  private skipSpace(): void {
    while (this.text.charAt(this.at) === ' ' || this.text.charAt(this.at) === '\t') this.at += 1;
  }

  private fail(expected: string): never {
    this.skipSpace();
    WORD.lastIndex = this.at;
    const found = WORD.exec(this.text)?.[0] ?? this.text.charAt(this.at);
    throw new SelectorError(this.at + 1, expected, found === '' ? 'the end' : JSON.stringify(found.length > 70 ? `${found.slice(0, 70)}…` : found));
  }
}
