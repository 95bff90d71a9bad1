/**
 * Takes secrets out of text before it leaves the machine: by their form wherever they stand, by the name they are given,
 * and by their very value where it is known. What is taken out is replaced by a word that says what it was.
 */
const BY_FORM: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)/g, '[private key]'],
  // Certificates are public; a device's, with its chain, is still nobody else's business.
  [/-----BEGIN CERTIFICATE(?: REQUEST)?-----[^]*?(?:-----END CERTIFICATE(?: REQUEST)?-----|$)/g, '[certificate]'],
  [/\bmft1\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)?/g, '[enrolment token]'],
  [/\bmfo_[A-Za-z0-9_-]+/g, '[operator token]'],
  [/\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}/gi, '$1 [credential]'],
  [/\b([a-z][a-z0-9+.-]{0,30}:\/\/[^\s:@/"']*):[^\s@/"']+@/gi, '$1:[password]@'],
];
const SECRET_NAME = /token|secret|passw|passphrase|api[_-]?key|private|credential|authorization|cookie|otel_exporter_otlp_headers/i;
/** A name that says it is no secret itself, but where one lies, or how many of another kind of token there are. */
const HARMLESS_NAME = /(file|path|dir|folder|tokens|token_?cycle_?bytes)$/i;
/**
 * `NAME=value`, `"name": "value"`, `--name value` and `"--name", "value"`, up to the value, which is looked at and not
 * taken: what is harmless here may be the name, or hold the name, of the next. Of a longer name its end counts; without a
 * bound the time would grow with the square of the longest word.
 */
const NAMED = /(\\?["']|)((?:--)?[A-Za-z][A-Za-z0-9_.-]{0,99})\1(\s*[=:,]\s*|\s+)(?=(\\"[^"\n]*"|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,;&}\]"']+))/g;
const NUMBER = /^-?\d+(\.\d+)?$/;
/** Shorter ones would take words of the text with them. */
const LEAST_LITERAL = 6;

/** Whether what is called so is not to be shown. */
export function isSecretName(name: string): boolean {
  return SECRET_NAME.test(name) && !HARMLESS_NAME.test(name);
}

/** `literals`: values that are known to be secret. */
export function redact(text: string, literals: readonly string[] = []): string {
  let clean = text;
  for (const literal of literals) {
    for (const form of literal.length >= LEAST_LITERAL ? [literal, encodeURIComponent(literal), JSON.stringify(literal).slice(1, -1), Buffer.from(literal).toString('base64')] : []) clean = clean.split(form).join('[secret]');
  }
  for (const [form, word] of BY_FORM) clean = clean.replace(form, word);
  return withoutNamed(clean);
}

function withoutNamed(text: string): string {
  let clean = '';
  let done = 0;
  for (const { 0: head, 2: name, 3: between, 4: value, index } of text.matchAll(NAMED)) {
    const begins = index + head.length;
    if (index < done || !(/[=:]/.test(between!) || name!.startsWith('--')) || !isSecretValue(name!, value!)) continue;
    const quote = /^\\?["']/.exec(value!)?.[0] ?? '';
    clean += `${text.slice(done, begins)}${quote}[secret]${quote}`;
    done = begins + value!.length;
  }
  return clean + text.slice(done);
}

function isSecretValue(name: string, value: string): boolean {
  return isSecretName(name) && !/^["']?[[{]/.test(value) && !/^(null|true|false|""|'')$/.test(value) && !(NUMBER.test(value) && !/pass/i.test(name));
}
