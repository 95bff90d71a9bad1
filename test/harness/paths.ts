import { join } from 'node:path';

export const REPO = join(__dirname, '..', '..');
export const FIXTURES = join(__dirname, '..', 'fixtures');
export const MODEL = join(FIXTURES, 'tinymoe-17m-q8_0.gguf');
export const WIKITEXT = join(FIXTURES, 'wikitext.txt');
