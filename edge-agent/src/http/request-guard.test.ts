import { hostname } from 'node:os';
import { ApiError } from './api-error';
import { RequestGuard } from './request-guard';

const guard = (boundHost = '127.0.0.1', apiKey: string | null = null) => new RequestGuard({ boundHost, allowedHosts: ['jetson.local'], apiKey });

function statusOf(check: () => void): number {
  try {
    check();
    return 200;
  } catch (error) {
    return (error as ApiError).status;
  }
}

test.each<[string, string, number]>([
  ['127.0.0.1', 'localhost:8400', 200], ['127.0.0.1', '127.0.0.1', 200], ['127.0.0.1', '[::1]:8400', 200], ['127.0.0.1', 'LOCALHOST.', 200], ['127.0.0.1', 'jetson.local:8400', 200],
  ['127.0.0.1', 'evil.example', 403], ['127.0.0.1', 'localhost.evil.example', 403], ['127.0.0.1', '192.168.1.7', 403], ['127.0.0.1', '', 403], ['127.0.0.1', 'localhost@evil.example', 403], ['127.0.0.1', 'a b', 403],
  ['192.168.1.7', '192.168.1.7:8400', 200], ['192.168.1.7', '192.168.1.8:8400', 403],
  ['0.0.0.0', '192.168.1.8:8400', 200], ['::', '[fe80::1]:8400', 200], ['0.0.0.0', hostname(), 200], ['0.0.0.0', 'evil.example', 403],
])('bound to %s, the host "%s" gets %i', (bound, host, status) => {
  expect(statusOf(() => guard(bound).checkSite({ host }))).toBe(status);
});

test.each<[string, number]>([
  ['http://localhost:3000', 200], ['https://127.0.0.1', 200], ['http://[::1]:9', 200],
  ['https://evil.example', 403], ['null', 403], ['file://', 403], ['http://localhost.evil.example', 403], ['http://localhost@evil.example', 403], ['', 403],
])('the origin "%s" gets %i', (origin, status) => {
  expect(statusOf(() => guard().checkSite({ host: 'localhost', origin }))).toBe(status);
});

test.each<[string | undefined, number]>([
  ['Bearer secret', 200], ['bearer secret', 200], ['Bearer secrets', 401], ['Bearer ', 401], ['secret', 401], ['Basic secret', 401], [undefined, 401],
])('with a key set, "%s" gets %i', (authorization, status) => {
  expect(statusOf(() => guard('127.0.0.1', 'secret').checkKey({ authorization }))).toBe(status);
});

test('asks for no key where none is set', () => {
  expect(statusOf(() => guard().checkKey({}))).toBe(200);
});
