import fc from 'fast-check';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isSecretName, redact } from './redact';
import { environment, secretsOf, tail } from './support-parts';

const ENROL = `mft1.${'A1b2-_'.repeat(7)}x.${'Zz09-_'.repeat(7)}y`;
const OPERATOR = `mfo_${'q7W-_z'.repeat(7)}`;
const KEY = `-----BEGIN PRIVATE KEY-----\n${'MIGHAgEAMBMGByqGSM49\n'.repeat(4)}-----END PRIVATE KEY-----`;

test.each([
  [`MOEFLEET_ENROL_TOKEN="${ENROL}"`, ENROL],
  [`agent run --enrol-token ${ENROL} --id a`, ENROL],
  [`{"msg":"first admin","token":"${OPERATOR}"}`, OPERATOR],
  [`authorization: Bearer ${OPERATOR}`, OPERATOR],
  [`the key: ${KEY} ends`, 'MIGHAgEAMBMGByqGSM49'],
  ['redis://:hunter22@10.0.0.2:6379/0', 'hunter22'],
  ['rediss://fleet:hunter22@a,b:1', 'hunter22'],
  ['"apiKey": "hunter22"', 'hunter22'],
  ['MOEFLEET_API_KEY=hunter22', 'hunter22'],
  ['--api-key hunter22 --http 0.0.0.0:1', 'hunter22'],
  ['password: hunter22', 'hunter22'],
  ['{"passphrase":"it\\"s hunter22"}', 'hunter22'],
  ['export MOEFLEET_API_KEY=hunter22', 'hunter22'],
  ['the login failed, password: hunter22', 'hunter22'],
  ['started with --api-key hunter22', 'hunter22'],
  ['{"args":["agent","--api-key","hunter22"]}', 'hunter22'],
  ['{"msg":"set password=hunter22"}', 'hunter22'],
  ['{"msg":"{\\"password\\":\\"hunter22\\"}"}', 'hunter22'],
  ['password=x1y2z3 passphrase=hunter22', 'hunter22'],
  ['-----BEGIN EC PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49', 'MIGHAgEAMBMGByqGSM49'],
])('%j loses what is secret in it', (text, secret) => {
  expect(redact(text)).not.toContain(secret);
  expect(redact(text)).toContain('[');
});

test.each([
  'the token is used up', '"decodeTokens": 128', '"tokenCycleBytes":4096', 'decode_tokens 5', 'MOEFLEET_TOKEN_FILE=/etc/token', 'prompt tokens: 7', 'keys of one script', '"token": { "id": "3fd0" }',
  'http://10.0.0.1:7400/healthz', '"msg":"session state"', 'tokensPerSecond: 12.5', '"reason":"password is missing"',
])('%j says nothing secret, and stays', (text) => {
  expect(redact(text)).toBe(text);
});

test('a known value goes wherever and however it stands', () => {
  expect(redact('a hunter2/ b aHVudGVyMi8= c hunter2%2F', ['hunter2/'])).toBe('a [secret] b [secret] c [secret]');
});

test('whatever surrounds a token, nothing of it is left', () => {
  fc.assert(fc.property(fc.string(), fc.string(), fc.constantFrom(ENROL, OPERATOR), (before, after, token) => {
    const clean = redact(`${before.replace(/[A-Za-z0-9_]$/, '')} ${token} ${after}`);
    return !clean.includes(token.slice(5, 20));
  }));
});

test('long words are read through in one go', () => {
  for (const word of ['deadbeef', 'a.', 'x-']) {
    const long = word.repeat(2 ** 17 / word.length);
    expect(redact(`${long} password=hunter22 ${long}_password=hunter22`) === `${long} password=[secret] ${long}_password=[secret]`).toBe(true);
  }
});

test('secret variables keep their names', () => {
  const env = { MOEFLEET_TOKEN: OPERATOR, MOEFLEET_TOKEN_FILE: '/x', MOEFLEET_OPERATOR: 'a:1', HOME: '/root', AWS_SECRET_ACCESS_KEY: 'abcdefgh', OTEL_EXPORTER_OTLP_HEADERS: 'x-key=abc' };
  expect(environment(env)).toEqual({ MOEFLEET_OPERATOR: 'a:1', MOEFLEET_TOKEN: '[secret]', MOEFLEET_TOKEN_FILE: '/x', OTEL_EXPORTER_OTLP_HEADERS: '[secret]' });
  expect(secretsOf(env)).toEqual(expect.arrayContaining([OPERATOR, 'abcdefgh']));
  expect(isSecretName('MOEFLEET_TOKEN_FILE')).toBe(false);
});

test('the end of a long log does not begin within a secret', () => {
  const folder = mkdtempSync(join(tmpdir(), 'moefleet-tail-'));
  try {
    const file = join(folder, 'log');
    writeFileSync(file, `${KEY}\n${'line\n'.repeat(20)}`);
    for (let most = 101; most < 180; most += 1) expect(redact(tail(file, most))).not.toContain('MIGHAgEA');
    writeFileSync(file, `${'x'.repeat(50)}${OPERATOR}\nend\n`);
    for (let most = 5; most < 60; most += 1) expect(redact(tail(file, most))).not.toContain('q7W-_z');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
