-- A database in memory: inserts, an index, joins, grouping, updates, deletion.
CREATE TABLE item (id INTEGER PRIMARY KEY, kind INTEGER, price REAL, name TEXT);
BEGIN;
INSERT INTO item
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    SELECT i, i * 7919 % 211, (i * 104729 % 100000) / 100.0, printf('item %05d of %x', i * 31 % 100000, i * i) FROM n;
COMMIT;
CREATE INDEX by_kind ON item (kind, price);
CREATE INDEX by_name ON item (name);
SELECT kind, count(*), round(sum(price), 2), max(name) FROM item GROUP BY kind ORDER BY 3 DESC LIMIT 20;
SELECT a.name, b.price FROM item a JOIN item b ON a.kind = b.kind AND b.price > 999.5 ORDER BY a.name LIMIT 50;
SELECT count(*) FROM item WHERE name LIKE '%99%' AND price BETWEEN 100 AND 700;
UPDATE item SET price = price * 1.1 WHERE kind % 3 = 0;
DELETE FROM item WHERE id % 5 = 0;
SELECT kind, round(avg(price), 6) FROM item WHERE name > 'item 3' GROUP BY kind HAVING count(*) > 10 ORDER BY kind;
