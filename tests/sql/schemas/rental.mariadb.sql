-- A video rental shop: what real schemas have, side by side. Statements end with a semicolon at the end of a line.
CREATE TABLE country (country_id smallint unsigned AUTO_INCREMENT PRIMARY KEY, country varchar(50) NOT NULL);
CREATE TABLE film (
  film_id int unsigned AUTO_INCREMENT PRIMARY KEY, title varchar(128) NOT NULL, description text, release_year year, rental_rate decimal(4,2) NOT NULL, length tinyint unsigned,
  rating enum('G','PG','PG-13','R','NC-17'), special_features set('Trailers','Commentaries','Deleted Scenes'), facts json, poster longblob, flags bit(3),
  cents int GENERATED ALWAYS AS (rental_rate * 100) STORED, changed timestamp(6) NOT NULL DEFAULT current_timestamp(6)
);
CREATE TABLE film_actor (actor_id int unsigned NOT NULL, film_id int unsigned NOT NULL, changed datetime(3), PRIMARY KEY (actor_id, film_id));
CREATE TABLE address (address_id bigint unsigned PRIMARY KEY, place point NOT NULL, opened time, district varchar(20) CHARACTER SET latin1 COLLATE latin1_swedish_ci);
CREATE TABLE `Price List` (`Article ``No``` varchar(40) COLLATE utf8mb4_bin PRIMARY KEY, `Größe` double, `select` float);
CREATE TABLE payment (payment_id int NOT NULL, paid_at datetime NOT NULL, amount decimal(5,2), PRIMARY KEY (paid_at, payment_id)) PARTITION BY RANGE COLUMNS (paid_at) (PARTITION p25 VALUES LESS THAN ('2025-02-01'), PARTITION rest VALUES LESS THAN MAXVALUE);
CREATE TABLE session (token binary(16) PRIMARY KEY, data varbinary(100));
CREATE TABLE nothing_yet (id int PRIMARY KEY, note text);
INSERT INTO country (country) SELECT concat('Land ÄÖ ', seq) FROM seq_1_to_109;
INSERT INTO film (title, description, release_year, rental_rate, length, rating, special_features, facts, poster, flags)
  SELECT concat('film ', md5(seq)), if(seq % 11, repeat(concat('plot ', seq), seq % 60), NULL), 1901 + seq % 130, (seq % 600) / 100, seq % 200, elt(seq % 6 + 1, 'G','PG','PG-13','R','NC-17',NULL), if(seq % 2, 'Trailers,Commentaries', ''), json_object('n', seq), unhex(repeat('00ff', seq)), seq % 8 FROM seq_1_to_1000;
INSERT INTO film_actor SELECT a.seq, f.seq, '2026-02-15 10:05:03.123' FROM seq_1_to_200 a, seq_1_to_1000 f WHERE (a.seq * 31 + f.seq * 17) % 37 = 0;
INSERT INTO address SELECT seq, point(seq, -seq / 7), '10:00:01', if(seq % 5, concat('É', seq), NULL) FROM seq_1_to_603;
INSERT INTO `Price List` SELECT concat(char(65 + seq % 58), '''', seq), seq / 3, seq / 7 FROM seq_1_to_300;
INSERT INTO payment SELECT seq, '2024-11-30' + INTERVAL (seq DIV 3) * 150 MINUTE, (seq % 1000) / 100 FROM seq_1_to_14596;
INSERT INTO session SELECT unhex(md5(seq)), repeat('x', seq % 100) FROM seq_1_to_500;
CREATE VIEW takings AS SELECT last_day(paid_at) AS month, sum(amount) AS amount, avg(amount) AS mean FROM payment GROUP BY 1;
